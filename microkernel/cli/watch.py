"""`mk watch`: follows the events of a running node, one line an event."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, clean, plain, print_json, wants_json, write

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "line", "run"]

PIPE_WIDTH = 1000  # characters of a line that no terminal bounds
VALUE_WIDTH = 200  # characters of one value: a long one is not to push the others out of the line
NARROWEST = 40
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+:/@%*")


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "watch", help="follow events", description=__doc__, parents=parents, allow_abbrev=False
    )
    parser.add_argument("pattern", metavar="PATTERN", help="the subjects: 'service.*.ready', 'models.>', '>' for all")
    parser.add_argument(
        "--since", type=_offset, metavar="OFFSET", help="first the events after this one; 0 is all kept"
    )
    parser.add_argument("--count", type=_count, metavar="N", help="leave after N events")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print events as they come, until Ctrl-C, the end of the node, or `--count` of them."""

    async def work(system: System) -> int:
        left = args.count
        async with system.subscribe(args.pattern, since=args.since) as events:
            async for event in events:
                told = {"offset": event.offset, "time": time.time(), "subject": event.subject}
                _show(args, told | {"body": plain(event.body)})
                left = None if left is None else left - 1
                if left == 0:
                    break
        return 0

    return on_node(args, work)


def line(event: Mapping[str, Any], width: int) -> str:
    """One event as one line of at most `width` characters: offset, local time, subject, and the fields of its body."""
    when = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    text = f"{event['offset']:>6}  {when}  {event['subject']}"
    body = event["body"]
    if isinstance(body, Mapping):
        fields = [f"{key}={_value(value)}" for key, value in body.items()]
    else:
        fields = [] if body is None else [_value(body)]
    text = clean("  ".join([text, " ".join(fields)]).rstrip()).replace("\n", " ").replace("\t", " ")
    return text if len(text) <= width else text[: width - 1] + "…"


def _value(value: Any) -> str:
    """A value as one word: as it is where it needs no quotes, as JSON otherwise."""
    text = value if isinstance(value, str) and value and PLAIN.issuperset(value) else _json(value)
    return text if len(text) <= VALUE_WIDTH else text[: VALUE_WIDTH - 1] + "…"


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _show(args: argparse.Namespace, event: dict[str, Any]) -> None:
    if wants_json(args):
        print_json(event)
        return
    width = max(NARROWEST, shutil.get_terminal_size().columns) if sys.stdout.isatty() else PIPE_WIDTH
    write(line(event, width))


def _offset(text: str) -> int:
    return _number(text, least=0, what="offset")


def _count(text: str) -> int:
    return _number(text, least=1, what="number of events")


def _number(text: str, *, least: int, what: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text) or int(text) < least:
        raise argparse.ArgumentTypeError(f"'{text}' is no {what}: {least} or more")
    return int(text)
