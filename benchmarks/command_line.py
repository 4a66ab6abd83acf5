"""What the commands of all benchmarks have in common: arguments, how they are interrupted, and what they write."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

__all__ = [
    "INTERRUPTED",
    "check_words",
    "command_of",
    "count",
    "meant",
    "run_lines",
    "sigterm_interrupts",
    "tell",
    "write_json",
]

INTERRUPTED = 130  # the status of a command that was


class Named(Protocol):
    """A line of a benchmark."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...


L = TypeVar("L", bound=Named)
R = TypeVar("R")


def count(text: str) -> int:
    """An argument that is a number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of at least 1")
    return int(text)


def tell(line: str) -> None:
    """How far it is, for people."""
    print(line, file=sys.stderr, flush=True)


def check_words(parser: argparse.ArgumentParser, words: Sequence[str], names: Sequence[str]) -> None:
    """End with what there is where a word is in no line's name."""
    for word in words:
        if not any(word in name for name in names):
            parser.error(f"no line has '{word}' in its name: {', '.join(names)}")


def meant(words: Sequence[str], name: str, names: Collection[str]) -> bool:
    """Whether a line is wanted: by its name, or by a word in it that is no line's name; without words, all are."""
    return not words or any(word == name if word in names else word in name for word in words)


def run_lines(lines: Sequence[L], benchmark: str, run: Callable[[L, Path], tuple[R, bool]]) -> tuple[list[R], bool]:
    """What `run` gives for each line, with a folder for logs; interrupted, what there is so far, and False."""
    results: list[R] = []
    with tempfile.TemporaryDirectory(prefix=f"{benchmark}-") as logs:
        for line in lines:
            result, complete = run(line, Path(logs))
            results.append(result)
            if not complete:
                tell(f"interrupted in the line {line.name}")
                return results, False
    return results, True


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
