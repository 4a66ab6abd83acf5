"""A line as in `benchmarks.messages`, which may have a table of its own and something to get ready beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from benchmarks.engine import line as judged
from benchmarks.messages import line as messages
from benchmarks.messages.line import Contender, Goal, Question, Running
from benchmarks.table import Row

__all__ = ["Contender", "Goal", "Line", "Question", "asked"]


class Line(messages.Line, frozen=True):
    """`show` makes a table of its rows, beside the one of all lines; `prepare` is called before anybody is started."""

    show: Callable[[Sequence[Row]], str] | None = None
    prepare: Callable[[], object] | None = None

    def judged(self) -> judged.Line:
        """As the table of all lines wants it: goals there are about the names of measures."""
        return judged.Line(
            name=self.name,
            measures=tuple(self.measures.values()),
            goals=tuple(msgspec.structs.replace(goal, key=self.measures[goal.key].name) for goal in self.goals),
        )


def asked(method: str, usual: dict[str, object], quick: dict[str, object]) -> Question:
    """The question that is a method of the client's, with the options of a usual run or of a quick one."""

    def question(running: Running, is_quick: bool) -> dict[str, float]:
        return dict(running.client.ask(method, **(quick if is_quick else usual)))

    return question
