"""How a backup and a restore are shown: a bar while they run, and then what there was; and which replicas there are."""

from __future__ import annotations

import argparse
import sys
from typing import IO, Any

import msgspec

from microkernel.cli.output import clean, date, duration, plain_table, size, wants_json

__all__ = ["ByteProgress", "show_replicas", "show_summary"]


class ByteProgress:
    """How many bytes have gone, on stderr where that is a terminal."""

    def __init__(self, what: str, *, shown: bool) -> None:
        self._what = what
        self._shown = shown and sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> ByteProgress:
        if self._shown:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def more(self, about: str, count: int) -> None:
        """So many bytes more have gone."""
        if self._bar is not None:
            self._bar.update(self._task, description=clean(f"{self._what} {about}"), advance=count)

    def at(self, about: str, done: int, total: int) -> None:
        """So many bytes of all have gone."""
        if self._bar is not None:
            self._bar.update(self._task, description=clean(about), completed=done, total=total)


def show_summary(args: argparse.Namespace, told: dict[str, Any], *, to: IO[str]) -> None:
    """What an archive has, and what it lacks; as JSON where that was asked for."""
    if wants_json(args):
        to.write(msgspec.json.encode(told).decode() + "\n")
        return
    rows = [(part["name"], str(part["entries"]), size(part["bytes"])) for part in told["parts"]]
    what = f"{size(told['archive_bytes'])}, {told['entries']} entries of {told['node']}, {date(told['at'])}"
    lines = [f"{told['file']}: {what}"]
    lines += plain_table(("part", "entries", "size"), rows).splitlines()
    lacks = [what for name, what in _LACKS.items() if not told[name]]
    if lacks:
        lines.append(f"not in it: {', '.join(lacks)}")
    lines += [f"left out: {name}, which {why}" for name, why in told["left_out"].items()]
    lines += [f"note: {note}" for note in told["notes"]]
    to.write("".join(clean(line) + "\n" for line in lines))


def show_replicas(args: argparse.Namespace, told: list[dict[str, Any]]) -> None:
    """What nodes keep of each other."""
    if wants_json(args):
        sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
        return
    rows = []
    for each in told:
        parts = each["replica"]["parts"]
        entries, held = sum(part["entries"] for part in parts), sum(part["bytes"] for part in parts)
        rows.append(
            (
                each["replica"]["node"],
                each["kept_by"],
                f"{duration(each['age'])} ago",
                str(entries),
                size(held),
                size(each["disk_bytes"]),
            )
        )
    sys.stdout.write(plain_table(("node", "kept by", "as it was", "entries", "size", "on disk"), rows))
    if not rows:
        sys.stdout.write("no node keeps anything of another one\n")


_LACKS = {
    "models": "weights of models (--models)",
    "secrets": "tokens, and the keys of the node and of its cluster (--secrets)",
}
