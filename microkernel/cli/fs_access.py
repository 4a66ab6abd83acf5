"""`mk fs access`, `usage` and `quota`: who may do what, and who keeps how much."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from microkernel.cli.node import on_node
from microkernel.cli.output import plain, print_json, print_table, size, wants_json, write

if TYPE_CHECKING:
    from microkernel.cli.fs import Action
    from microkernel.wire.client import System

__all__ = ["add"]

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
NO_LIMIT = "none"


def add(action: Action) -> None:
    """Put the actions into the parser."""
    telling = action("access", "who may do what with a file or folder, and below it", _access)
    telling.add_argument("path", metavar="PATH", help="in the tree")
    telling.add_argument(
        "--give", metavar="USER=RIGHTS", type=_grant, action="append", default=[],
        help="the list from now on: read, add, write, with commas; * is everybody; repeatable",
    )  # fmt: skip
    telling.add_argument("--nobody", action="store_true", help="a list without anybody: the owner alone")
    telling.add_argument("--inherit", action="store_true", help="no list here: what holds above")
    action("usage", "who keeps how much, old versions included", _usage)
    limiting = action("quota", "limit what an owner may keep", _quota)
    limiting.add_argument("owner", metavar="OWNER", help="* is everybody who is not named")
    limiting.add_argument("limit", metavar="LIMIT", type=_limit, help=f"bytes, such as 500M or 10G, or '{NO_LIMIT}'")


def _access(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        if args.give or args.nobody or args.inherit:
            grants = None if args.inherit else dict(args.give)
            found = plain(await system.call("filesystem.change_access", path=args.path, grants=grants))
        else:
            found = plain(await system.call("filesystem.access", path=args.path))
        if wants_json(args):
            print_json(found)
            return 0
        rows = [(found["owner"], "all: it is the owner")]
        rows += [(each["user"], ", ".join(each["rights"])) for each in found["grants"]]
        print_table(("user", "may"), rows)
        write(f"by the list of {found['given_at']}")
        return 0

    return on_node(args, work)


def _usage(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        found = plain(await system.call("filesystem.usage", path="/"))
        if wants_json(args):
            print_json(found)
            return 0
        rows = [(each["owner"], size(each["bytes"]), size(each["limit_bytes"]), each["versions"]) for each in found]
        print_table(("owner", "keeps", "of", "versions"), rows)
        return 0

    return on_node(args, work)


def _quota(args: argparse.Namespace) -> int:
    async def work(system: System) -> int:
        await system.call("filesystem.set_quota", owner=args.owner, limit_bytes=args.limit[0])
        return 0

    return on_node(args, work)


def _grant(text: str) -> tuple[str, list[str]]:
    user, equals, rights = text.partition("=")
    if not user or not equals:
        raise argparse.ArgumentTypeError("is not USER=RIGHTS")
    return user, [each for each in rights.split(",") if each]


def _limit(text: str) -> tuple[int | None]:
    if text == NO_LIMIT:
        return (None,)
    found = re.fullmatch(r"(\d+)([KMGT]?)i?B?", text, re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(f"is no size: 500M, 10G, or '{NO_LIMIT}'")
    return (int(found[1]) * UNITS[found[2].upper()],)
