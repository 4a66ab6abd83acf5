"""`mk top`: processes, devices, memory and queues as they are, once a second; keys kill, pause, resume and renice."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from microkernel.cli.keys import Keys
from microkernel.cli.node import Asked, on_node
from microkernel.cli.output import Commands, plain, plain_table, print_json, wants_json, write
from microkernel.cli.top_screen import PROCESS_COLUMNS, Action, Snapshot, TopScreen
from microkernel.errors import MicrokernelError

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "run"]

INTERVAL = 1.0  # seconds between two looks at the node


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "top", help="a live view of what runs", description=__doc__, parents=parents, allow_abbrev=False
    )
    parser.add_argument("--once", action="store_true", help="print it once and leave; so it is in a pipe")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show the node until `q` or Ctrl-C."""

    async def work(system: System) -> int:
        if wants_json(args):
            print_json(await _look(system, None))
        elif args.once or not (sys.stdout.isatty() and sys.stdin.isatty()):
            _print(await _look(system, None))
        else:
            await _live(system)
        return 0

    return on_node(args, work)


async def _live(system: System) -> None:
    from rich.live import Live

    screen, watch = TopScreen(), _Watch()
    snapshot = await _look(system, watch)
    screen.update(snapshot)
    due = time.monotonic() + INTERVAL
    with Keys() as keys, Live(screen.draw(snapshot), screen=True, auto_refresh=False) as live:
        while True:
            key = await keys.next(max(0.0, due - time.monotonic()))
            if key == "q":
                return
            action = None if key is None else screen.press(key)
            if action is not None:
                screen.said = await _do(system, action)
            if key is None or action is not None:
                snapshot = await _look(system, watch)
                screen.update(snapshot)
                due = time.monotonic() + INTERVAL
            live.update(screen.draw(snapshot), refresh=True)


async def _do(system: Asked, action: Action) -> str:
    """Do what a key asked for; what came of it, for the last line."""
    try:
        result = plain(await system.call(f"scheduler.{action.method}", **action.fields))
    except MicrokernelError as error:
        return str(error)
    return result if isinstance(result, str) else f"{action.method} {result['pid']} ({result['title']})"


class _Watch:
    """How busy each device was between two looks."""

    def __init__(self) -> None:
        self._before: dict[str, float] = {}
        self._when = time.monotonic()

    def busy(self, seconds: dict[str, float]) -> dict[str, float]:
        """The shares, from the seconds that each device has been busy in all."""
        now = time.monotonic()
        passed = max(1e-3, now - self._when)
        shares = {name: (spent - self._before.get(name, spent)) / passed for name, spent in seconds.items()}
        self._before, self._when = seconds, now
        return shares


async def _look(system: Asked, watch: _Watch | None) -> Snapshot:
    devices = plain(await system.call("devices.list"))
    return Snapshot(
        policy=plain(await system.call("scheduler.policy"))["name"],
        devices=devices,
        accounts=[each for each in plain(await system.call("memory.usage")) if each["tier"] == "device"],
        processes=plain(await system.call("scheduler.list", ended=False)),
        busy={} if watch is None else watch.busy({each["name"]: each["busy_seconds"] for each in devices}),
    )


def _print(snapshot: Snapshot) -> None:
    screen = TopScreen()
    write(f"policy {snapshot.policy}")
    for line in screen.device_lines(snapshot):
        write(line)
    write("")
    sys.stdout.write(plain_table(PROCESS_COLUMNS, screen.rows(snapshot)))
