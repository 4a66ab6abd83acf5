"""`mk memory`: what is reserved of each device and what is in use of it, and each owner's part."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, plain, print_json, print_table, size, wants_json, write

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "model_rows", "owner_rows", "rows", "run"]

RUNGS = ("", "cached prefixes are dropped", "cold contexts move", "nothing new begins", "answers are paused")


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "memory", help="who has reserved how much", description=__doc__, parents=parents, allow_abbrev=False
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List the accounts and what is reserved on them, what models have of it, and what owners have."""

    async def work(system: System) -> int:
        accounts = plain(await system.call("memory.usage"))
        if wants_json(args):
            print_json(accounts)
            return 0
        lines = [line for account in accounts for line in rows(account)]
        print_table(("device", "tier", "reserved", "of", "in use", "owner", "purpose"), lines)
        models = [line for account in accounts for line in model_rows(account)]
        if models:
            write("")
            print_table(("model", "device", "weights", "buffers", "held", "cached", "free", "in use"), models)
        owners = [line for account in accounts for line in owner_rows(account)]
        if owners:
            write("")
            print_table(("owner", "device", "pages", "quota", "found before"), owners)
        return 0

    return on_node(args, work)


def rows(account: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    """The lines of one account: its sum, then each reservation."""
    device, tier = account["device"], account["tier"]
    rung = RUNGS[account["rung"]]
    purpose = f"in all; memory is short: {rung}" if rung else "in all"
    yield (
        device,
        tier,
        size(account["reserved_bytes"]),
        size(account["limit_bytes"]),
        size(account["used_bytes"]),
        "",
        purpose,
    )
    for each in account["reservations"]:
        yield device, tier, size(each["bytes"]), "", "", each["owner"], each["purpose"]


def model_rows(account: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    """A line for each model on a device: its weights and buffers, and its pages by what they are."""
    if account["tier"] != "device":
        return
    for each in account["holdings"]:
        parts = ("weight_bytes", "buffer_bytes", "held_bytes", "cached_bytes", "free_bytes", "resident_bytes")
        yield each["name"], each["device"], *(size(each[part]) for part in parts)


def owner_rows(account: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    """A line for each owner: its pages, what it may have, and how much of its prompts had been read before."""
    for each in account["owners"]:
        asked = each["hits"] + each["misses"]
        found = f"{each['hits'] / asked:.0%} of {asked} tokens" if asked else ""
        yield each["owner"], account["device"], size(each["bytes"]), size(each["quota"]), found
