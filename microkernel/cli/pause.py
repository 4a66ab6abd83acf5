"""`mk pause` and `mk resume`: let a process rest between two quanta, and go on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, clean, plain, print_json, wants_json, write

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "run"]

DONE = {"pause": "paused", "resume": "resumed"}


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put both commands into the parser."""
    for signal, does in (("pause", "let a process rest"), ("resume", "let a process go on")):
        parser = commands.add_parser(signal, help=does, description=__doc__, parents=parents, allow_abbrev=False)
        parser.add_argument("pid", type=int, metavar="PID", help="as `mk ps` shows it")
        parser.set_defaults(run=run, signal=signal)


def run(args: argparse.Namespace) -> int:
    """Pause or resume the process."""

    async def work(system: System) -> int:
        process = plain(await system.call(f"scheduler.{args.signal}", pid=args.pid))
        if wants_json(args):
            print_json(process)
        else:
            write(clean(f"{DONE[args.signal]} {process['pid']} ({process['title']})"))
        return 0

    return on_node(args, work)
