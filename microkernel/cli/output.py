"""How commands speak: aligned tables, JSON, sizes and times for people, and one line for what is wrong."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from microkernel.buffers import Array, array_to_json
from microkernel.errors import MicrokernelError
from microkernel.message import to_builtins
from microkernel.wire.record import Record

if TYPE_CHECKING:
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - argparse has no other name
else:
    Commands = object

__all__ = [
    "Commands",
    "clean",
    "date",
    "duration",
    "error_line",
    "moment",
    "plain",
    "plain_table",
    "print_json",
    "print_table",
    "size",
    "wants_json",
    "write",
]

# C0 and C1 control characters, but for tab and line feed, and the marks that turn the direction of writing: a title, a
# log line or a model's answer could otherwise drive the terminal that shows it, or read as what it is not.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def write(line: str) -> None:
    """One line to stdout, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def clean(text: str) -> str:
    """`text` without characters that drive a terminal or hide in which order it reads."""
    return _CONTROL.sub("", text)


def wants_json(args: argparse.Namespace) -> bool:
    """Whether `--json` was given."""
    return bool(getattr(args, "json", False))


def plain(value: Any) -> Any:
    """A result as dicts, lists and scalars, whether it came over a link or from this process."""
    if isinstance(value, Mapping | Record):
        return {str(key): plain(value[key]) for key in value}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, msgspec.Struct):
        return plain(to_builtins(value))
    if isinstance(value, Array):
        return plain(array_to_json(value))
    if isinstance(value, bytes | memoryview):
        return msgspec.to_builtins(value)
    return value


def print_json(value: Any, *, indent: bool = False) -> None:
    """`value` as JSON, one line unless `indent`."""
    text = msgspec.json.encode(plain(value))
    write((msgspec.json.format(text, indent=2) if indent else text).decode())


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns: on a terminal as wide as it is, in a pipe one line a row without anything cut off.

    Columns that have no names have no row for them.
    """
    texts = [["" if cell is None else " ".join(clean(str(cell)).split()) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        sys.stdout.write(plain_table(columns, texts))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    has_names = any(columns)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0), show_header=has_names)
    for place, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=place == 0)
    for row in texts:
        table.add_row(*(Text(cell, style=STATE_STYLES.get(cell, "")) for cell in row))
    Console(highlight=False).print(table)


STATE_STYLES = {
    "ready": "green",
    "running": "green",
    "healthy": "green",
    "done": "green",
    "starting": "yellow",
    "waiting": "yellow",
    "restarting": "yellow",
    "draining": "yellow",
    "loading": "yellow",
    "suspect": "yellow",
    "broken": "red",
    "failed": "red",
    "killed": "red",
    "quarantined": "red",
    "gone": "red",
}


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns that are as wide as their widest cell, two spaces apart."""
    lines = [list(row) for row in ((columns, *rows) if any(columns) else rows)]
    widths = [max((len(line[place]) for line in lines), default=0) for place in range(len(columns))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )


def size(count: float | None) -> str:
    """Bytes as a person reads them, in powers of 1024."""
    if count is None:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def date(at: float | None) -> str:
    """A Unix time as a person reads it, by this machine's clock."""
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def moment(seconds: float | None) -> str:
    """A short time as a person reads it."""
    if seconds is None:
        return ""
    for unit, scale in (("us", 1e6), ("ms", 1e3)):
        if abs(seconds) * scale < 999.5:  # three digits: beyond that they would be written with an exponent
            return f"{seconds * scale:.3g} {unit}"
    return duration(seconds)


def error_line(error: Exception) -> str:
    """What went wrong, in one line, with what can be done where there is something to do."""
    if isinstance(error, MicrokernelError):
        sentence = str(error)
    elif isinstance(error, OSError) and error.strerror:
        sentence = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        sentence = f"{type(error).__name__}: {error} (a defect: MICROKERNEL_DEBUG=1 shows where)"
    return "error: " + " ".join(clean(sentence).split())
