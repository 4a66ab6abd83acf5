"""`mk map`: calls a function with each of many items, on all cores of the node."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from microkernel.cli.node import on_node
from microkernel.cli.output import Commands, clean, plain, print_json, wants_json, write

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "run"]

_RANGE = re.compile(r"(-?\d+):(-?\d+)(?::(-?\d+))?")


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "map", help="call a function with each of many items", description=__doc__, parents=parents, allow_abbrev=False
    )
    parser.add_argument("function", metavar="MODULE:FUNCTION", help="what the node can import")
    parser.add_argument(
        "items", type=_items, metavar="ITEMS", help="START:STOP[:STEP], a JSON list, or - for JSON lines from stdin"
    )
    parser.add_argument("--tasks", type=int, metavar="M", help="so many tasks (default: of about 100 ms)")
    parser.add_argument(
        "--reduce", metavar="FUNCTION", help="fold the values: sum, max, min, or module:function of two"
    )
    parser.add_argument("--whole", action="store_true", help="call it once a task, with all items of that")
    parser.add_argument("--processes", action="store_true", help="in processes of their own, not in threads")
    parser.add_argument(
        "--class", dest="process_class", choices=("interactive", "batch", "background"), default="batch"
    )
    parser.add_argument("--nice", type=int, default=0, metavar="N", help="-20 goes first, 19 last")
    parser.add_argument("--name", metavar="NAME", help="keep what is done, and go on with it where it was cut off")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Map, and print the values: one JSON value a line, or the reduction."""
    items, count = args.items
    fields: dict[str, Any] = {
        "function": args.function,
        "items": items,
        "tasks": args.tasks,
        "whole": args.whole,
        "workers": "processes" if args.processes else "threads",
        "process_class": args.process_class,
        "nice": args.nice,
        "name": args.name,
    }

    async def work(system: System) -> int:
        if args.reduce is not None:
            value = plain(await system.call("scheduler.map", **fields, reduce=args.reduce))
            print_json({"value": value}) if wants_json(args) else write(clean(json.dumps(value)))
            return 0
        return await _stream(args, system, fields, count)

    return on_node(args, work)


async def _stream(args: argparse.Namespace, system: System, fields: dict[str, Any], count: int) -> int:
    failed = 0
    with _Progress(count, shown=not wants_json(args)) as progress:
        async with system.stream("scheduler.imap", **fields) as pieces:
            async for item in pieces:
                piece = plain(item)
                progress.show(piece["stop"])
                failed += len(piece["failed"])
                if wants_json(args):
                    print_json(piece)
                else:
                    _show(piece)
    return 1 if failed else 0


def _show(piece: dict[str, Any]) -> None:
    for place, value in enumerate(piece["values"]):
        number = piece["start"] + place
        error = piece["failed"].get(str(number)) or piece["failed"].get(number)
        if error is None:
            write(clean(json.dumps(value)))
        else:
            sys.stderr.write(clean(f"item {number}: {error['message']}") + "\n")
            write("null")


class _Progress:
    """A bar on stderr, where that is a terminal."""

    def __init__(self, count: int, *, shown: bool) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._count = count
        self._shown = shown and sys.stderr.isatty()

    def __enter__(self) -> _Progress:
        if self._shown:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("items", total=self._count)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int) -> None:
        """So many items are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)


def _items(text: str) -> tuple[Any, int]:
    """The items of the argument, and how many there are."""
    found = _RANGE.fullmatch(text)
    if found:
        start, stop, step = int(found[1]), int(found[2]), int(found[3] or 1)
        if step == 0:
            raise argparse.ArgumentTypeError("the step of a range is not 0")
        return {"start": start, "stop": stop, "step": step}, len(range(start, stop, step))
    try:
        items = [json.loads(line) for line in sys.stdin if line.strip()] if text == "-" else json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"no range, and no JSON: {error}") from error
    if not isinstance(items, list):
        raise argparse.ArgumentTypeError("items are a JSON list")
    return items, len(items)
