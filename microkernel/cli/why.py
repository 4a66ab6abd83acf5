"""`mk why`: says in a sentence why a process waits."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, clean, print_json, wants_json, write

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "run"]


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "why", help="why a process waits", description=__doc__, parents=parents, allow_abbrev=False
    )
    parser.add_argument("pid", type=int, metavar="PID", help="as `mk ps` shows it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask why."""

    async def work(system: System) -> int:
        why = str(await system.call("scheduler.why", pid=args.pid))
        if wants_json(args):
            print_json({"pid": args.pid, "why": why})
        else:
            write(clean(why))
        return 0

    return on_node(args, work)
