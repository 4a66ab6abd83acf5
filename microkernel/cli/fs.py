"""`mk fs`: files and folders of the node's one tree."""

from __future__ import annotations

import argparse
import json
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
    action("mounts", "other storage in the tree", _mounts)
    mounting = action("mount", "put other storage into the tree", _mount)
    mounting.add_argument("storage", metavar="URL", help="as fsspec has it, such as hf://datasets/org/name")
    mounting.add_argument("path", metavar="PATH", help="where, such as /mnt/data")
    mounting.add_argument("--writable", action="store_true", help="root may change what is there")
    mounting.add_argument(
        "--option", metavar="KEY=VALUE", type=_option, action="append", default=[], help="for the back end; repeatable"
    )
    unmounting = action("umount", "take other storage out of the tree", _unmount)
    unmounting.add_argument("path", metavar="PATH", help="the mount")


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


def _mounts(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        _tell_mounts(args, plain(await system.call("filesystem.mounts")))
        return 0

    return on_node(args, work)


def _mount(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        options = dict(args.option)
        found = await system.call(
            "filesystem.mount", path=args.path, url=args.storage, writable=args.writable, options=options
        )
        _tell_mounts(args, [plain(found)])
        return 0

    return on_node(args, work)


def _unmount(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        await system.call("filesystem.unmount", path=args.path)
        return 0

    return on_node(args, work)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError("is not KEY=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _tell_mounts(args: argparse.Namespace, found: list[dict[str, Any]]) -> None:
    if wants_json(args):
        print_json(found)
        return
    rows = [
        (each["path"], each["url"], _changes(each),
         f"{size(each['cached_bytes'])} of {size(each['cache_bytes'])}", each["problem"] or "")
        for each in found
    ]  # fmt: skip
    print_table(("path", "url", "changes", "cached", "problem"), rows)


def _changes(mount: dict[str, Any]) -> str:
    if not mount["writable"]:
        return "read only"
    return "writable, atomic" if mount["atomic"] else "writable"


def _tell(args: argparse.Namespace, found: list[dict[str, Any]]) -> None:
    if wants_json(args):
        print_json(found)
        return
    print_table(COLUMNS, [(each["kind"], size(each["size"]), each["path"], each["about"]) for each in found])
