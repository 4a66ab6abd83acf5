"""`mk fs mounts`, `mount` and `umount`: other storage in the node's tree."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from microkernel.cli.node import on_node
from microkernel.cli.output import plain, print_json, print_table, size, wants_json

if TYPE_CHECKING:
    from microkernel.cli.fs import Action
    from microkernel.wire.client import System

__all__ = ["add"]


def add(action: Action) -> None:
    """Put the actions into the parser."""
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
