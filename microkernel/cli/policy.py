"""`mk policy`: by which policy processes take turns, owners' weights, and what they had; or sets them."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, clean, duration, plain, print_json, print_table, wants_json, write

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "run"]


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "policy", help="whose turn is next", description=__doc__, parents=parents, allow_abbrev=False
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="take turns by this one from now on")
    parser.add_argument(
        "--weight", action="append", type=_weight, default=[], metavar="OWNER=WEIGHT", help="a share under `fair`"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show the policy, after setting what was asked for."""

    async def work(system: System) -> int:
        if args.name is not None:
            await system.call("scheduler.set_policy", name=args.name)
        for owner, weight in args.weight:
            await system.call("scheduler.set_weight", owner=owner, weight=weight)
        status = plain(await system.call("scheduler.policy"))
        if wants_json(args):
            print_json(status)
        else:
            _show(status)
        return 0

    return on_node(args, work)


def _show(status: dict[str, Any]) -> None:
    others = [name for name in status["policies"] if name != status["name"]]
    write(clean(f"{status['name']}; others: {', '.join(others)}"))
    weights, shares = status["weights"], status["shares"]
    whole: dict[str, float] = {}
    for each in shares:
        whole[each["device"]] = whole.get(each["device"], 0.0) + each["seconds"]
    rows = [
        (
            each["device"],
            each["process_class"],
            each["owner"],
            f"{weights.get(each['owner'], 1.0):g}",
            duration(each["seconds"]),
            f"{each['seconds'] / whole[each['device']]:.1%}" if whole[each["device"]] else "",
        )
        for each in shares
    ]
    if rows:
        write("")
        print_table(("device", "class", "owner", "weight", "had", "share"), rows)


def _weight(text: str) -> tuple[str, float]:
    owner, _, weight = text.rpartition("=")
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not owner or not (math.isfinite(number) and number > 0.0):
        raise argparse.ArgumentTypeError(f"'{text}' is not OWNER=WEIGHT with a weight of more than 0")
    return owner, number
