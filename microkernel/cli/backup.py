"""`mk backup`: makes one archive of all that the node keeps and that cannot be made again, or that a lost node had."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from microkernel.cli.backup_display import ByteProgress, show_replicas, show_summary
from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, plain, wants_json
from microkernel.errors import Invalid, NotFound, Unavailable
from microkernel.message import Message
from microkernel.threads import to_its_end

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "run"]

STDOUT = "-"
PRIVATE = 0o600
AHEAD = 4  # pieces of about a MiB that are on their way


class _Piece(Message, kw_only=True):
    """An item of `backup.create`."""

    part: str = ""
    content: bytes = b""
    summary: dict[str, Any] | None = None


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "backup", help="make an archive of the node", description=__doc__, parents=parents, allow_abbrev=False
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="the archive, of this machine; - is what goes out")
    parser.add_argument("--models", action="store_true", help="with the weights of models")
    parser.add_argument("--secrets", action="store_true", help="with tokens, the key that signs them, and passwords")
    parser.add_argument(
        "--without", action="append", default=[], metavar="SERVICE", help="leave a service out; repeatable"
    )
    replicas = parser.add_mutually_exclusive_group()
    replicas.add_argument(
        "--of", metavar="NODE", help="of the replica that the cluster keeps of a node, also a lost one"
    )
    replicas.add_argument("--replicas", action="store_true", help="list what nodes of the cluster keep of each other")
    replicas.add_argument("--forget", metavar="NODE", help="delete the replicas of a node, wherever they are kept")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make it, and say what is in it."""
    if args.replicas or args.forget:
        return on_node(args, lambda system: _replicas(system, args))
    if args.file is None:
        raise Invalid("which file is to have the archive?", remedy="mk backup FILE, or mk backup - | …")
    asked = {"models": args.models, "secrets": args.secrets, "without": args.without, "of": args.of}
    began = time.monotonic()

    async def work(system: System) -> int:
        summary: dict[str, Any] | None = None
        with _target(args.file) as file, ByteProgress("backup", shown=not wants_json(args)) as progress:
            async with system.stream("backup.create", asked, credit=AHEAD, result_type=_Piece) as pieces:
                async for piece in pieces:
                    await to_its_end(file.write, piece.content)
                    progress.more(piece.part, len(piece.content))
                    summary = plain(piece.summary) or summary
            if summary is None:
                raise Unavailable("the backup ended before it was whole", remedy="make it once more")
        told = {"file": args.file, "seconds": round(time.monotonic() - began, 3), **summary}
        show_summary(args, told, to=sys.stderr if args.file == STDOUT else sys.stdout)
        return 0

    return on_node(args, work)


async def _replicas(system: System, args: argparse.Namespace) -> int:
    """List them, or delete those of a node."""
    if args.file is not None:
        raise Invalid("that makes no archive", remedy="leave the file out")
    told = plain(await system.call("backup.replicas", everywhere=True))
    if args.forget:
        keepers = [each["kept_by"] for each in told if each["replica"]["node"] == args.forget]
        if not keepers:
            raise NotFound(f"no node keeps a replica of '{args.forget}'", remedy="mk backup --replicas")
        for keeper in keepers:
            await system.call(f"backup.forget@{keeper}", node=args.forget)
        sys.stdout.write("".join(f"{keeper} keeps none of {args.forget} any more\n" for keeper in keepers))
    else:
        show_replicas(args, told)
    return 0


@contextmanager
def _target(name: str) -> Iterator[IO[bytes]]:
    """The file to write to: written beside, and there under its name once it is whole and on the disk."""
    if name == STDOUT:
        if sys.stdout.isatty():
            raise Invalid("an archive is not for a terminal", remedy="mk backup FILE, or mk backup - | …")
        with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as file:
            yield file
        return
    path = Path(name).absolute()
    if path.is_dir():
        raise Invalid(f"{path} is a folder", remedy=f"name a file in it: {path / 'backup.tar'}")
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE)
    except OSError as error:
        raise Invalid(f"{path} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        beside.unlink(missing_ok=True)
