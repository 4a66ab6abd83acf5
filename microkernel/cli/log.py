"""`mk log`: what has happened on the node, and what is happening."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, clean, plain, print_json, wants_json, write

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "line", "run"]


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser("log", help="show the log", description=__doc__, parents=parents, allow_abbrev=False)
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is written from now on")
    parser.add_argument("-n", "--lines", type=int, default=100, metavar="N", help="how many lines (default: 100)")
    parser.add_argument("--level", default="info", metavar="LEVEL", help="debug, info, warning or error, and above")
    parser.add_argument("--service", metavar="NAME", help="of one service only")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print records, oldest first."""
    ask = {"lines": args.lines, "level": args.level, "service": args.service}

    async def work(system: System) -> int:
        if args.follow:
            async with system.stream("monitor.follow", ask) as records:
                async for record in records:
                    _show(args, plain(record))
            return 0
        for record in plain(await system.call("monitor.log", ask)):
            _show(args, record)
        return 0

    return on_node(args, work)


def line(record: dict[str, Any]) -> str:
    """One record as one line, in local time."""
    when = time.strftime("%H:%M:%S", time.localtime(record["time"]))
    text = f"{when}  {record['level']:<7}  {record['logger']}: {record['message']}"
    if record.get("error"):
        text += f" ({record['error']})"
    return " ".join(clean(part) for part in text.splitlines())


def _show(args: argparse.Namespace, record: dict[str, Any]) -> None:
    if wants_json(args):
        print_json(record)
    else:
        write(line(record))
