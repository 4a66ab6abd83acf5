"""What is asked: a line with its measures and goals; and a group of lines that are measured in the same rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from benchmarks.engine.stage import Stage
from benchmarks.engine.tasks import FairTask
from benchmarks.first_token.prompts import Prompts
from benchmarks.measure import Measure, Round
from benchmarks.messages.line import Goal
from benchmarks.table import Row, rows_of

__all__ = ["Goal", "Group", "Line", "Question", "Taken"]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to know. The key of a goal is the name of one of the measures; `show` is a table of the line's own."""

    name: str
    measures: tuple[Measure, ...]
    goals: tuple[Goal, ...] = ()
    show: Callable[[Sequence[Row]], str] | None = None


class Question(Line, frozen=True, kw_only=True):
    """A line that is a task for each contender; `make` is told whether to be quick, and makes it with new prompts."""

    make: Callable[[Prompts, bool], FairTask]


class Taken(msgspec.Struct, kw_only=True):
    """What the rounds of a group gave. `contenders` says who took part and how, ours first."""

    contenders: dict[str, str]
    rounds: list[Round] = []
    commands: dict[str, str] = {}
    versions: dict[str, str] = {}
    skipped: dict[str, str] = {}
    notes: list[str] = []

    @property
    def ours(self) -> str:
        """The contender that the others are compared with."""
        return next(iter(self.contenders))

    def rows(self, line: Line) -> list[Row]:
        """Those of one line."""
        others = [name for name in self.contenders if name != self.ours]
        return rows_of(self.rounds, line.measures, self.ours, others)


class Group(msgspec.Struct, frozen=True):
    """Lines that share their rounds. `take` measures those that are wanted; it raises `Broken` where it cannot."""

    about: str
    lines: tuple[Line, ...]
    take: Callable[[Stage, Sequence[Line]], Taken]
