"""What `mk top` shows: devices, memory and processes of one moment, and which process the keys are about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from microkernel.cli.keys import DOWN, UP
from microkernel.cli.output import STATE_STYLES, clean, duration, size
from microkernel.message import Message

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["Action", "Snapshot", "TopScreen"]

KEYS = "↑↓ choose   k kill   n nicer   N less nice   p pause   r resume   w why   q quit"
BAR = 20  # characters
PROCESS_COLUMNS = ("pid", "state", "class", "nice", "kind", "title", "owner", "device", "age", "busy", "tokens", "why")


class Action(Message):
    """What a key asks for: a method of the scheduler, with its fields."""

    method: str
    fields: dict[str, Any]


class Snapshot(Message):
    """The node at a moment, as its services tell it; `busy` is each device's share of the time since the last one."""

    policy: str
    devices: list[dict[str, Any]]
    accounts: list[dict[str, Any]]
    processes: list[dict[str, Any]]
    busy: dict[str, float] = {}


class TopScreen:
    """The screen between two snapshots."""

    def __init__(self) -> None:
        self.said = ""  # the last line: what came of the last key
        self._processes: Sequence[dict[str, Any]] = ()
        self._chosen: int | None = None  # a pid

    @property
    def chosen(self) -> dict[str, Any] | None:
        """The process that keys are about."""
        return next((process for process in self._processes if process["pid"] == self._chosen), None)

    def update(self, snapshot: Snapshot) -> None:
        """Show this one. Who was chosen stays so; where it has ended, its neighbour is."""
        place = self._place()
        self._processes = snapshot.processes
        if self.chosen is None and self._processes:
            self._chosen = self._processes[min(place, len(self._processes) - 1)]["pid"]

    def press(self, key: str) -> Action | None:
        """What a key asks for; None for one that only moves the choice, or that means nothing."""
        if key in {UP, DOWN} and self._processes:
            place = self._place() + (1 if key == DOWN else -1)
            self._chosen = self._processes[max(0, min(place, len(self._processes) - 1))]["pid"]
            return None
        process = self.chosen
        if process is None:
            return None
        pid, nice = process["pid"], process["nice"]
        match key:
            case "k":
                return Action("kill", {"pid": pid})
            case "n":
                return Action("nice", {"pid": pid, "nice": min(19, nice + 1)})
            case "N":
                return Action("nice", {"pid": pid, "nice": max(-20, nice - 1)})
            case "p":
                return Action("pause", {"pid": pid})
            case "r":
                return Action("resume", {"pid": pid})
            case "w":
                return Action("why", {"pid": pid})
        return None

    def rows(self, snapshot: Snapshot) -> list[tuple[str, ...]]:
        """The processes, as texts."""
        return [
            (
                str(process["pid"]),
                process["state"],
                process["process_class"],
                str(process["nice"]),
                clean(process["kind"]),
                clean(process["title"]),
                clean(process["owner"]),
                process["device"] or "",
                duration(process["age"]),
                duration(process["device_seconds"]),
                f"{process['tokens_in']}/{process['tokens_out']}",
                clean(process["why"]),
            )
            for process in snapshot.processes
        ]

    def device_lines(self, snapshot: Snapshot) -> list[str]:
        """One line a device: how busy it is, its queue, and its memory."""
        lines = []
        for device in snapshot.devices:
            busy = snapshot.busy.get(device["name"], 0.0)
            account = next((each for each in snapshot.accounts if each["device"] == device["name"]), None)
            used = (
                "" if account is None else f"   memory {size(account['used_bytes'])} of {size(account['limit_bytes'])}"
            )
            done = f"answers {device['quanta']}" if device.get("answers") else f"quanta {device['quanta']}"
            lines.append(
                f"{device['name']:<8} {_bar(busy)} {busy:>4.0%}   queue {device['queued']}   "
                f"{done}{used}   {device['state']}"
            )
        return lines

    def draw(self, snapshot: Snapshot) -> Group:
        """All of it, for a terminal."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        running = sum(process["state"] == "running" for process in snapshot.processes)
        count = len(snapshot.processes)
        head = f"{count} process{'' if count == 1 else 'es'}, {running} running   policy {snapshot.policy}"
        table = Table(box=None, pad_edge=False, header_style="bold reverse", padding=(0, 1, 0, 0), expand=True)
        for column in PROCESS_COLUMNS:
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        for process, row in zip(snapshot.processes, self.rows(snapshot), strict=True):
            chosen = "reverse" if process["pid"] == self._chosen else ""
            table.add_row(*(Text(cell, style=STATE_STYLES.get(cell, "")) for cell in row), style=chosen)
        return Group(
            Text(head, style="bold"),
            *(Text(line) for line in self.device_lines(snapshot)),
            Text(""),
            table,
            Text(""),
            Text(clean(self.said), style="yellow"),
            Text(KEYS, style="dim"),
        )

    def _place(self) -> int:
        return next((place for place, each in enumerate(self._processes) if each["pid"] == self._chosen), 0)


def _bar(share: float) -> str:
    full = round(BAR * max(0.0, min(1.0, share)))
    return f"[{'|' * full}{' ' * (BAR - full)}]"
