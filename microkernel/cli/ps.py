"""`mk ps`: what runs on the node."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, duration, plain, print_json, print_table, wants_json

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "row", "run"]

COLUMNS = ("pid", "state", "class", "kind", "title", "owner", "device", "age", "busy", "tokens", "why")


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser("ps", help="list processes", description=__doc__, parents=parents, allow_abbrev=False)
    parser.add_argument("--all", action="store_true", help="the ones that have ended too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List the processes."""

    async def work(system: System) -> int:
        processes = plain(await system.call("scheduler.list", ended=args.all))
        if wants_json(args):
            print_json(processes)
        else:
            print_table(COLUMNS, [row(process) for process in processes])
        return 0

    return on_node(args, work)


def row(process: dict[str, Any]) -> tuple[object, ...]:
    """One line of the table."""
    return (
        process["pid"],
        process["state"],
        process["process_class"],
        process["kind"],
        process["title"],
        process["owner"],
        process["device"],
        duration(process["age"]),
        duration(process["device_seconds"]),
        f"{process['tokens_in']} in, {process['tokens_out']} out",
        process["why"],
    )
