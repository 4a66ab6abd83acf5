"""The data of a training job that lie on this machine: found beside its configuration, and put into the node's tree."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from microkernel.cli.fs_files import open_source, upload
from microkernel.config import line_of
from microkernel.errors import Invalid, NotFound
from microkernel.message import Message

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["Configuration", "LocalFile", "local_files", "put_files"]

ELSEWHERE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*://")  # how paths begin that the node understands by itself
PATTERN = re.compile(r"[*?\[]")
FOLDER = "/data"  # of the tree


class Configuration(Message):
    """The text of a job's configuration, and the file that it was read from."""

    path: Path
    text: str


class LocalFile(Message):
    """A file of this machine, and where it goes in the tree."""

    file: Path
    path: str


def local_files(config: Configuration, job: str, key: str, given: Sequence[str]) -> dict[str, list[LocalFile]]:
    """The files that each relative path or pattern of `data.<key>` means, in the order of their names.

    They go below `/data/<job>`, where they are below the configuration's folder, and else by their names alone. Raises
    `NotFound` with the line for what means no file, and `Invalid` for a name that the tree would take for a pattern.
    """
    return {path: _found(config, job, key, path) for path in given if not ELSEWHERE.match(path)}


async def put_files(system: System, files: Sequence[LocalFile]) -> int:
    """Put them into the tree, each once; how many bytes that were. Raises `Invalid` where two would have one place."""
    sources: dict[str, Path] = {}
    for each in files:
        other = sources.setdefault(each.path, each.file)
        if other != each.file:
            raise Invalid(f"{other} and {each.file} would both be {each.path}", remedy="rename one of them")
    total = 0
    for path, source in sources.items():
        with open_source(str(source)) as file:
            total += int((await upload(system, file, path))["size"])
    return total


def _found(config: Configuration, job: str, key: str, given: str) -> list[LocalFile]:
    folder = Path(os.path.abspath(config.path.parent))  # noqa: PTH100 - resolve() would follow links out of the folder
    if PATTERN.search(given):
        paths = [Path(path) for path in sorted(glob.glob(os.path.join(glob.escape(str(folder)), given)))]  # noqa: PTH207, PTH118 - Path.glob takes no ".."
    else:
        path = folder / given
        paths = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [Path(os.path.normpath(path)) for path in paths if path.is_file()]
    if not files:
        raise NotFound(f"{_place(config, key)}: there is no file {folder / given}", field=f"data.{key}")
    return [LocalFile(file, f"{FOLDER}/{job}/{_name(config, key, folder, file)}") for file in files]


def _name(config: Configuration, key: str, folder: Path, file: Path) -> str:
    name = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name
    if PATTERN.search(name):
        raise Invalid(
            f"{_place(config, key)}: {file} has a sign of patterns in its name, one of *?[",
            field=f"data.{key}",
            remedy="rename it",
        )
    return name


def _place(config: Configuration, key: str) -> str:
    line = line_of(config.text, ("data", key))
    return f"{config.path}, line {line}: data.{key}" if line else f"{config.path}: data.{key}"
