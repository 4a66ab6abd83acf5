"""`mk train`: fits a model to texts by what a TOML file says, and shows how it gets on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microkernel.cli.job_files import Configuration, LocalFile, local_files, put_files
from microkernel.cli.job_follow import follow, goes_on
from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, clean, plain, print_json, size, wants_json, write
from microkernel.errors import Invalid

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "run"]


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "train", help="fit a model to texts", description=__doc__, parents=parents, allow_abbrev=False
    )
    parser.add_argument("config", metavar="CONFIG", help="a TOML file; its relative paths are files beside it")
    parser.add_argument("--detach", action="store_true", help="start the job, print its name, and leave")
    parser.add_argument(
        "--check", action="store_true", help="only look whether the configuration and its files are right"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Start the job and follow it. Ctrl-C leaves it running."""
    config = _read(Path(args.config).expanduser())
    started: list[str] = []

    async def work(system: System) -> int:
        asked: dict[str, Any] = {"text": config.text, "where": str(config.path)}
        checked = plain(await system.call("training.check", **asked))
        files = _files(config, checked)
        if args.check:
            _tell_checked(args, checked, files)
            return 0
        every = [each for found in files.values() for each in found]
        if every:
            total = await put_files(system, every)
            _tell(
                args, f"{len({each.path for each in every})} files, {size(total)}, are in /data/{checked['name']} now"
            )
        meant = {given: [each.path for each in found] for given, found in files.items()}
        job = plain(await system.call("training.start", **asked, files=meant))
        started.append(job["job"])
        if args.detach:
            print_json(job) if wants_json(args) else write(clean(job["job"]))
            return 0
        _tell(args, f"job {job['job']}")
        return await follow(args, system, job["job"])

    try:
        return on_node(args, work)
    except KeyboardInterrupt:
        for job in started:
            goes_on(args, job)
        raise


def _read(path: Path) -> Configuration:
    try:
        return Configuration(path, path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}") from error


def _files(config: Configuration, checked: dict[str, Any]) -> dict[str, list[LocalFile]]:
    """What relative paths of the configuration mean."""
    name, data = checked["name"], checked["data"]
    return {
        given: found
        for key in ("train", "evaluation")
        for given, found in local_files(config, name, key, data[key]).items()
    }


def _tell_checked(args: argparse.Namespace, checked: dict[str, Any], files: dict[str, list[LocalFile]]) -> None:
    if wants_json(args):
        print_json(checked)
        return
    for found in files.values():
        for each in found:
            write(clean(f"{each.file}  would be  {each.path}"))
    write(clean(f"{args.config} is right: {checked['name']}, {checked['method']['kind']}"))


def _tell(args: argparse.Namespace, line: str) -> None:
    if not wants_json(args):
        sys.stderr.write(clean(line) + "\n")
