"""`mk fs put`, `get`, `mkdir`, `rm`, `mv` and `cp`: files into the tree, out of it, and about in it."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from microkernel.cli.node import on_node
from microkernel.cli.output import plain, size, write
from microkernel.errors import Invalid

if TYPE_CHECKING:
    from microkernel.cli.fs import Action
    from microkernel.wire.client import System
    from microkernel.wire.inbox import Stream

__all__ = ["add", "open_source", "upload"]

PIECE = 256 << 10  # bytes


def add(action: Action) -> None:
    """Put the actions into the parser."""
    putting = action("put", "a file of this machine into the tree", _put)
    putting.add_argument("file", metavar="FILE", help="of this machine; - is what comes in")
    putting.add_argument("path", metavar="PATH", help="in the tree")
    getting = action("get", "a file of the tree to this machine", _get)
    getting.add_argument("path", metavar="PATH", help="in the tree")
    getting.add_argument("file", nargs="?", metavar="FILE", help="of this machine (default: its name, here)")
    getting.add_argument("--at", metavar="VERSION", help="as it was: a number, or the name of a snapshot")
    making = action("mkdir", "make a folder, and those on the way", _make)
    making.add_argument("path", metavar="PATH", help="in the tree")
    removing = action("rm", "remove a file or folder; its versions stay", _remove)
    removing.add_argument("path", metavar="PATH", help="in the tree")
    removing.add_argument("-r", "--recursive", action="store_true", help="with all that is in it")
    moving = action("mv", "give a file or folder another path", _move)
    copying = action("cp", "have a file's content under another path too", _copy)
    for both in (moving, copying):
        both.add_argument("path", metavar="PATH", help="in the tree")
        both.add_argument("to", metavar="TO", help="in the tree")
    moving.add_argument("--replace", action="store_true", help="in place of a file that is there")
    copying.add_argument("--at", metavar="VERSION", help="as it was: a number, or the name of a snapshot")


def _put(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        with open_source(args.file) as file:
            found = await upload(system, file, args.path)
        write(f"{found['path']}: {size(found['size'])}, version {found['version']}")
        return 0

    return on_node(args, work)


async def upload(system: System, file: IO[bytes], path: str) -> dict[str, Any]:
    """Put what is left of `file` under `path` in the tree, and folders on the way; what `filesystem.stat` gives."""
    async with system.stream("filesystem.write_stream", path=path) as stream:
        sending = asyncio.create_task(_send(file, stream))
        try:
            found: dict[str, Any] = plain(await anext(stream))
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending
    return found


async def _send(file: IO[bytes], stream: Stream) -> None:
    while piece := await asyncio.to_thread(file.read, PIECE):
        await stream.send(piece)
    await stream.finish()


def open_source(name: str) -> IO[bytes]:
    """A file of this machine, or standard input for `-`. Raises `Invalid`."""
    try:
        return os.fdopen(os.dup(0), "rb") if name == "-" else Path(name).open("rb")
    except OSError as error:
        raise Invalid(f"{name} cannot be read: {error.strerror}") from error


def _get(args: argparse.Namespace) -> int:
    target = Path(args.file or args.path.rpartition("/")[2])
    if target.is_dir():
        target /= args.path.rpartition("/")[2]

    async def work(system: System) -> int:
        beside = target.with_name(target.name + ".part")  # a file that is half there has not its name
        asked = {"path": args.path, "version": args.at}
        try:
            with _made(beside) as file:
                async with system.stream("filesystem.read", result_type=bytes, **asked) as pieces:
                    async for piece in pieces:
                        await asyncio.to_thread(file.write, piece)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
        return 0

    if args.file == "-":
        return _to_stdout(args)
    return on_node(args, work)


def _to_stdout(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        asked = {"path": args.path, "version": args.at}
        async with system.stream("filesystem.read", result_type=bytes, **asked) as pieces:
            async for piece in pieces:
                sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return 0

    return on_node(args, work)


def _made(path: Path) -> IO[bytes]:
    try:
        return path.open("wb")
    except OSError as error:
        raise Invalid(f"{path} cannot be written: {error.strerror}") from error


def _make(args: argparse.Namespace) -> int:
    return _call(args, "make_folder", path=args.path, exist_ok=True)


def _remove(args: argparse.Namespace) -> int:
    return _call(args, "remove", path=args.path, recursive=args.recursive)


def _move(args: argparse.Namespace) -> int:
    return _call(args, "rename", path=args.path, to=args.to, replace=args.replace)


def _copy(args: argparse.Namespace) -> int:
    return _call(args, "copy", path=args.path, to=args.to, version=args.at)


def _call(args: argparse.Namespace, what: str, **fields: Any) -> int:
    async def work(system: System) -> int:
        await system.call(f"filesystem.{what}", **fields)
        return 0

    return on_node(args, work)
