"""What the commands of all benchmarks have in common: arguments, how they are interrupted, and what they write."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

__all__ = ["INTERRUPTED", "command_of", "count", "sigterm_interrupts", "tell", "write_json"]

INTERRUPTED = 130  # the status of a command that was


def count(text: str) -> int:
    """An argument that is a number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of at least 1")
    return int(text)


def tell(line: str) -> None:
    """How far it is, for people."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM is as Ctrl-C within, so that no process is left behind."""
    usual = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)


def command_of(benchmark: str, arguments: Sequence[str] | None) -> str:
    """The command that is run, as somebody may type it again."""
    return shlex.join([sys.executable, "-m", f"benchmarks.{benchmark}", *(arguments or sys.argv[1:])])


def write_json(target: Path, result: object) -> None:
    """Write all of a result, to be read by people too."""
    target.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
