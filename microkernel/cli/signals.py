"""`mk kill`, `mk pause` and `mk resume`: end a process, let it rest between two quanta, and let it go on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, clean, plain, print_json, wants_json, write

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "run"]

SIGNALS = {"kill": "end a process", "pause": "let a process rest", "resume": "let a process go on"}
DONE = {"kill": "killed", "pause": "paused", "resume": "resumed"}


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the commands into the parser."""
    for signal, does in SIGNALS.items():
        parser = commands.add_parser(signal, help=does, description=__doc__, parents=parents, allow_abbrev=False)
        parser.add_argument("pid", type=int, metavar="PID", help="as `mk ps` shows it")
        parser.set_defaults(run=run, signal=signal)


def run(args: argparse.Namespace) -> int:
    """Send the signal."""

    async def work(system: System) -> int:
        process = plain(await system.call(f"scheduler.{args.signal}", pid=args.pid))
        if wants_json(args):
            print_json(process)
        else:
            write(clean(f"{DONE[args.signal]} {process['pid']} ({process['title']})"))
        return 0

    return on_node(args, work)
