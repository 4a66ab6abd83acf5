"""`mk nice`: has a process go before others of its class, or behind them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, clean, plain, print_json, wants_json, write

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "run"]


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "nice", help="let a process go behind others", description=__doc__, parents=parents, allow_abbrev=False
    )
    parser.add_argument("pid", type=int, metavar="PID", help="as `mk ps` shows it")
    parser.add_argument("nice", type=int, metavar="NICE", help="-20 goes first, 19 last; only root makes it less")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Renice the process."""

    async def work(system: System) -> int:
        process = plain(await system.call("scheduler.nice", pid=args.pid, nice=args.nice))
        if wants_json(args):
            print_json(process)
        else:
            write(clean(f"process {process['pid']} ({process['title']}) has nice {process['nice']}"))
        return 0

    return on_node(args, work)
