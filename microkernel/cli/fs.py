"""`mk fs`: files and folders of the node's one tree."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, plain, print_json, print_table, size, wants_json

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add"]

COLUMNS = ("kind", "size", "path", "about")


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser("fs", help="files", description=__doc__, parents=parents, allow_abbrev=False)
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, told: str, run: Any) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=told, description=told, parents=parents, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    listing = action("ls", "what is in a folder", _list)
    listing.add_argument("path", nargs="?", default="/", metavar="PATH", help="from the root on (default: /)")
    printing = action("cat", "what is in a file", _print)
    printing.add_argument("path", metavar="PATH", help="from the root on, such as /proc/services")
    showing = action("stat", "what a path leads to", _show)
    showing.add_argument("path", metavar="PATH", help="from the root on")


def _list(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        _tell(args, plain(await system.call("filesystem.list", path=args.path)))
        return 0

    return on_node(args, work)


def _show(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        _tell(args, [plain(await system.call("filesystem.stat", path=args.path))])
        return 0

    return on_node(args, work)


def _print(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        out = sys.stdout.buffer
        async with system.stream("filesystem.read", path=args.path, result_type=bytes) as pieces:
            async for piece in pieces:
                out.write(piece)
        out.flush()
        return 0

    return on_node(args, work)


def _tell(args: argparse.Namespace, found: list[dict[str, Any]]) -> None:
    if wants_json(args):
        print_json(found)
        return
    print_table(COLUMNS, [(each["kind"], size(each["size"]), each["path"], each["about"]) for each in found])
