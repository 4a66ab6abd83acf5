"""`mk fs`: files and folders of the node's one tree."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from microkernel.cli import fs_access, fs_files, fs_mounts, fs_search, fs_versions
from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, date, plain, print_json, print_table, size, wants_json

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["Action", "add"]

Action: TypeAlias = Callable[[str, str, Callable[[argparse.Namespace], int]], argparse.ArgumentParser]
"""Makes the parser of an action: its name, what it does, and the function that does it."""

PAGE = 10_000  # names that are asked for at once


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser("fs", help="files", description=__doc__, parents=parents, allow_abbrev=False)
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, told: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=told, description=told, parents=parents, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    listing = action("ls", "what is in a folder", _list)
    listing.add_argument("path", nargs="?", default="/", metavar="PATH", help="from the root on (default: /)")
    printing = action("cat", "what is in a file", _print)
    printing.add_argument("path", metavar="PATH", help="from the root on, such as /proc/services")
    showing = action("stat", "what a path leads to", _show)
    showing.add_argument("path", metavar="PATH", help="from the root on")
    for looking in (listing, printing, showing):
        looking.add_argument("--at", metavar="VERSION", help="as it was: a number, or the name of a snapshot")
    fs_files.add(action)
    fs_versions.add(action)
    fs_search.add(action)
    fs_access.add(action)
    fs_mounts.add(action)


def _list(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            asked = {"path": args.path, "version": args.at, "after": after, "limit": PAGE}
            page = plain(await system.call("filesystem.list", **asked))
            found += page
            if len(page) < PAGE:
                break
            after = page[-1]["path"].rpartition("/")[2]
        if wants_json(args):
            print_json(found)
            return 0
        print_table(("kind", "size", "owner", "changed", "path", "about"), [_row(each) for each in found])
        return 0

    return on_node(args, work)


def _show(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        found = plain(await system.call("filesystem.stat", path=args.path, version=args.at))
        if wants_json(args):
            print_json(found)
            return 0
        print_table(("", ""), [(name, _shown(name, value)) for name, value in found.items() if value not in {None, ""}])
        return 0

    return on_node(args, work)


def _print(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        out = sys.stdout.buffer
        asked = {"path": args.path, "version": args.at}
        async with system.stream("filesystem.read", result_type=bytes, **asked) as pieces:
            async for piece in pieces:
                out.write(piece)
        out.flush()
        return 0

    return on_node(args, work)


def _row(each: dict[str, Any]) -> tuple[object, ...]:
    changed = date(each["modified"])
    return each["kind"], size(each["size"]), each["owner"] or "", changed, each["path"], each["about"]


def _shown(name: str, value: Any) -> str:
    if name == "modified":
        return date(value)
    return f"{value} ({size(value)})" if name == "size" else str(value)
