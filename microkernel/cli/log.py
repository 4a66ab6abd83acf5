"""`mk log`: what has happened on the node, and what is happening; with `--audit`, what was denied."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, clean, plain, print_json, wants_json, write
from microkernel.errors import Invalid

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "denial_line", "line", "run"]


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser("log", help="show the log", description=__doc__, parents=parents, allow_abbrev=False)
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is written from now on")
    parser.add_argument("-n", "--lines", type=int, default=100, metavar="N", help="how many lines (default: 100)")
    parser.add_argument("--level", default="info", metavar="LEVEL", help="debug, info, warning or error, and above")
    parser.add_argument("--service", metavar="NAME", help="of one service only")
    parser.add_argument("--audit", action="store_true", help="what was denied, and to whom, instead of the log")
    parser.add_argument("--user", metavar="NAME", help="with --audit: of one user only")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print records, oldest first. Raises `Invalid` for options that do not go together."""
    if args.audit:
        return _audit(args)
    if args.user is not None:
        raise Invalid("--user goes with --audit")
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


def denial_line(denial: dict[str, Any]) -> str:
    """One denial as one line, in local time."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(denial["at"]))
    who = denial["who"] if denial["user"] is None else f"{denial['user']} ({denial['who']})"
    text = f"{when}  {denial['act']:<12}  {who} {denial['target']}: {denial['why']}"
    if denial["peer"]:
        text += f", from {denial['peer']}"
    if denial["count"] > 1:
        text += f", {denial['count']} times"
    return " ".join(clean(part) for part in text.splitlines())


def _audit(args: argparse.Namespace) -> int:
    if args.follow or args.service is not None:
        raise Invalid("--audit goes with --lines and --user", remedy="a client can follow the subject audit.denied")

    async def work(system: System) -> int:
        for denial in plain(await system.call("monitor.audit", lines=args.lines, user=args.user)):
            if wants_json(args):
                print_json(denial)
            else:
                write(denial_line(denial))
        return 0

    return on_node(args, work)


def _show(args: argparse.Namespace, record: dict[str, Any]) -> None:
    if wants_json(args):
        print_json(record)
    else:
        write(line(record))
