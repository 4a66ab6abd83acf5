"""`mk fs search`, `grep`, `index` and `watch`: files by what they say, and by what happens to them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from microkernel.cli.node import on_node
from microkernel.cli.output import clean, date, plain, print_json, wants_json, write

if TYPE_CHECKING:
    from microkernel.cli.fs import Action
    from microkernel.wire.client import System

__all__ = ["add"]

SHOWN = 240  # characters of a piece


def add(action: Action) -> None:
    """Put the actions into the parser."""
    searching = action("search", "pieces of text that mean what is asked for, the nearest first", _search)
    searching.add_argument("query", metavar="QUERY", help="in words of your own")
    searching.add_argument("path", nargs="?", default="/", metavar="PATH", help="in the tree (default: /)")
    searching.add_argument("--limit", type=int, default=10, metavar="N", help="how many (default: 10)")
    searching.add_argument("--owner", metavar="USER", help="whose files")
    seeking = action("grep", "lines of text files that have a pattern", _grep)
    seeking.add_argument("pattern", metavar="PATTERN", help="a regular expression")
    seeking.add_argument("path", nargs="?", default="/", metavar="PATH", help="in the tree (default: /)")
    seeking.add_argument("-i", "--ignore-case", action="store_true", help="upper and lower case are the same")
    seeking.add_argument("--literal", action="store_true", help="the pattern is what it says, letter by letter")
    indexing = action("index", "have the text in a folder found by search; without one, what is", _index)
    indexing.add_argument("path", nargs="?", metavar="PATH", help="a folder of the tree")
    indexing.add_argument("--stop", action="store_true", help="not any more")
    watching = action("watch", "what changes, until Ctrl-C", _watch)
    watching.add_argument("path", nargs="?", default="/", metavar="PATH", help="in the tree (default: /)")
    watching.add_argument("--since", type=int, metavar="VERSION", help="also what has changed since then")


def _search(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        asked = {"query": args.query, "path": args.path, "limit": args.limit, "owner": args.owner}
        found = plain(await system.call("filesystem.search", **asked))
        if wants_json(args):
            print_json(found)
            return 0
        for each in found:
            write(f"{each['score']:.2f}  {each['path']}  {each['start']}..{each['stop']}")
            write(f"      {' '.join(clean(each['text']).split())[:SHOWN]}")
        return 0 if found else 1

    return on_node(args, work)


def _grep(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        asked = {
            "pattern": args.pattern, "path": args.path, "ignore_case": args.ignore_case, "literal": args.literal,
        }  # fmt: skip
        found = False
        async with system.stream("filesystem.grep", **asked) as matches:
            async for each in matches:
                found = True
                match = plain(each)
                write(f"{match['path']}:{match['line']}: {clean(match['text'])}")
        return 0 if found else 1

    return on_node(args, work)


def _index(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        if args.path is None:
            state = plain(await system.call("filesystem.index_state"))
        else:
            state = plain(await system.call("filesystem.index", path=args.path, indexed=not args.stop))
        if wants_json(args):
            print_json(state)
            return 0
        write(f"indexed: {', '.join(state['folders']) or 'no folder'}")
        write(
            f"{state['pieces']} pieces, {state['waiting']} files or folders wait"
            + (state["why"] and f": {state['why']}")
        )
        return 0

    return on_node(args, work)


def _watch(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        async with system.stream("filesystem.watch", path=args.path, since=args.since) as changes:
            async for each in changes:
                change = plain(each)
                before = f" (was {change['before']})" if change["before"] else ""
                told = (change["version"], date(change["at"]), change["by"], change["action"], change["path"] + before)
                write("  ".join(map(str, told)))
        return 0

    return on_node(args, work)
