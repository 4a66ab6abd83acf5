"""`mk fs history`, `rollback`, `snapshot`, `snapshots`, `diff`, `collect` and `scrub`: what was, and what is kept."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from microkernel.cli.node import on_node
from microkernel.cli.output import date, plain, print_json, print_table, size, wants_json, write

if TYPE_CHECKING:
    from microkernel.cli.fs import Action
    from microkernel.wire.client import System

__all__ = ["add"]

DAY = 86400.0  # seconds


def add(action: Action) -> None:
    """Put the actions into the parser."""
    telling = action("history", "the versions of a file or folder, the newest first", _history)
    telling.add_argument("path", metavar="PATH", help="in the tree, also of what was removed")
    back = action("rollback", "make a file or folder what it was", _roll_back)
    back.add_argument("path", metavar="PATH", help="in the tree")
    back.add_argument("version", metavar="VERSION", help="a number, or the name of a snapshot")
    naming = action("snapshot", "name all files on the disk as they are now", _snapshot)
    naming.add_argument("name", metavar="NAME", help="letters, digits, '.', '_' and '-'")
    naming.add_argument("--forget", action="store_true", help="take the name away instead")
    action("snapshots", "all snapshots, the oldest first", _snapshots)
    comparing = action("diff", "what became different in a folder", _diff)
    comparing.add_argument("since", metavar="SINCE", help="a number, or the name of a snapshot")
    comparing.add_argument("path", nargs="?", default="/", metavar="PATH", help="in the tree (default: /)")
    comparing.add_argument("--until", metavar="VERSION", help="another one (default: now)")
    collecting = action("collect", "forget old versions", _collect)
    collecting.add_argument("--older-than", metavar="DAYS", type=float, help="than the settings say otherwise")
    collecting.add_argument("--dry-run", action="store_true", help="only count")
    forgetting = action("forget", "forget now what a path has led to before", _forget)
    forgetting.add_argument("path", metavar="PATH", help="in the tree")
    action("scrub", "read all files on the disk, and compare them with their checksums", _scrub)


def _history(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        found = plain(await system.call("filesystem.history", path=args.path))
        if wants_json(args):
            print_json(found)
            return 0
        rows = [
            (each["version"], date(each["at"]), each["action"], each["by"], size(each["size"]), each["path"])
            for each in found
        ]
        print_table(("version", "when", "what", "by", "size", "path"), rows)
        return 0

    return on_node(args, work)


def _roll_back(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        changed = await system.call("filesystem.roll_back", path=args.path, version=args.version)
        write(f"{args.path} is what it was at {args.version}: {changed} names have changed")
        return 0

    return on_node(args, work)


def _snapshot(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        if args.forget:
            await system.call("filesystem.forget_snapshot", name=args.name)
            return 0
        taken = plain(await system.call("filesystem.snapshot", name=args.name))
        write(f"{taken['name']} is version {taken['version']}")
        return 0

    return on_node(args, work)


def _snapshots(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        found = plain(await system.call("filesystem.snapshots", path="/"))
        if wants_json(args):
            print_json(found)
            return 0
        rows = [(each["name"], each["version"], date(each["at"]), each["by"]) for each in found]
        print_table(("name", "version", "when", "by"), rows)
        return 0

    return on_node(args, work)


def _diff(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        found: list[dict[str, Any]] = []
        asked = {"path": args.path, "since": args.since, "until": args.until}
        async with system.stream("filesystem.diff", **asked) as differences:
            async for each in differences:
                found.append(plain(each))  # noqa: PERF401 # a stream is no list
        if wants_json(args):
            print_json(found)
            return 0
        rows = [(each["how"], size(each["before"]), size(each["size"]), each["path"]) for each in found]
        print_table(("how", "before", "after", "path"), rows)
        return 0

    return on_node(args, work)


def _collect(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        seconds = None if args.older_than is None else args.older_than * DAY
        done = plain(await system.call("filesystem.collect", older_than=seconds, dry_run=args.dry_run))
        if wants_json(args):
            print_json(done)
            return 0
        what = "would be" if args.dry_run else "are"
        write(f"{done['versions']} versions {what} forgotten, and {done['contents']} contents of {size(done['bytes'])}")
        return 0

    return on_node(args, work)


def _forget(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        done = plain(await system.call("filesystem.forget_versions", path=args.path))
        write(f"{done['versions']} versions are forgotten, and {done['contents']} contents of {size(done['bytes'])}")
        return 0

    return on_node(args, work)


def _scrub(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        done = plain(await system.call("filesystem.scrub"))
        if wants_json(args):
            print_json(done)
        else:
            write(f"{done['contents']} contents of {size(done['bytes'])} were read: {len(done['damages'])} damages")
            for each in done["damages"]:
                write(_damage(each))
        return 0 if all(each["repaired"] for each in done["damages"]) else 1

    return on_node(args, work)


def _damage(damage: dict[str, Any]) -> str:
    where = "" if damage["start"] is None else f", bytes {damage['start']} to {damage['stop']}"
    whose = f" of {', '.join(damage['paths'])}" if damage["paths"] else ""
    return f"  {damage['what']}{where}{whose}" + (": repaired" if damage["repaired"] else "")
