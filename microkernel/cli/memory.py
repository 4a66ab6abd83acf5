"""`mk memory`: who has reserved how much of which device."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, plain, print_json, print_table, size, wants_json

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "rows", "run"]


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "memory", help="who has reserved how much", description=__doc__, parents=parents, allow_abbrev=False
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List the accounts and what is reserved on them."""

    async def work(system: System) -> int:
        accounts = plain(await system.call("memory.usage"))
        if wants_json(args):
            print_json(accounts)
        else:
            lines = [line for account in accounts for line in rows(account)]
            print_table(("device", "tier", "reserved", "of", "owner", "purpose"), lines)
        return 0

    return on_node(args, work)


def rows(account: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    """The lines of one account: its sum, then each reservation."""
    device, tier = account["device"], account["tier"]
    yield device, tier, size(account["reserved_bytes"]), size(account["limit_bytes"]), "", "in all"
    for each in account["reservations"]:
        yield device, tier, size(each["bytes"]), "", each["owner"], each["purpose"]
