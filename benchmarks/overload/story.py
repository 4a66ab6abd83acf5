"""What a scenario tells: its figures before, during and after, and the goals that it was to meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from benchmarks.messages.goals import Outcome
from benchmarks.messages.process import Process
from benchmarks.spread import spread_of

__all__ = ["Figure", "Scenario", "Stage", "Story", "render_figures"]

NODE = "benchmarks.overload.node:OverloadedNode"
CALLER = "benchmarks.overload.caller:Caller"
CROWD = "benchmarks.overload.crowd:Crowd"

MIB = 2**20


class Figure(msgspec.Struct, frozen=True):
    """One measure in `unit`, by phase."""

    name: str
    unit: str
    values: dict[str, float]


class Story(msgspec.Struct):
    """What is told of one run."""

    name: str
    figures: list[Figure] = []
    goals: list[Outcome] = []

    def figure(self, name: str, unit: str, **values: float) -> None:
        """Note a measure, by phase."""
        self.figures.append(Figure(name, unit, values))

    def at_most(self, measure: str, bound: float, found: float, unit: str) -> None:
        """Note a goal that is met below `bound`, and on it."""
        self._goal(measure, f"at most {bound:.4g} {unit}", found, met=found <= bound)

    def at_least(self, measure: str, bound: float, found: float, unit: str) -> None:
        """Note a goal that is met above `bound`, and on it."""
        self._goal(measure, f"at least {bound:.4g} {unit}", found, met=found >= bound)

    def _goal(self, measure: str, goal: str, found: float, *, met: bool) -> None:
        self.goals.append(Outcome(f"{self.name}: {measure}", goal, spread_of([found]), met))


class Stage:
    """The processes of one run, which end with it."""

    def __init__(self, log: Path, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self._log = log
        self._open = ExitStack()
        self.node = self._process(NODE)
        self._address: str = self.node.ask("address")

    def caller(self, links: int = 1) -> Process:
        """A process that calls over so many links."""
        caller = self._process(CALLER, self._address)
        caller.ask("connect", links=links)
        return caller

    def crowd(self, count: int) -> Process:
        """A process with so many clients."""
        crowd = self._process(CROWD, self._address)
        crowd.ask("connect", count=count)
        return crowd

    def close(self) -> None:
        """End the processes, the node last."""
        self._open.close()

    def _process(self, target: str, address: str = "") -> Process:
        process = Process(target, self._log, address)
        self._open.callback(process.close)
        return process


class Scenario(msgspec.Struct, frozen=True):
    """A story that can be run: `run` fills it in, and is told whether to be quick. Raises `Broken`."""

    name: str
    about: str
    run: Callable[[Stage, Story, bool], None]


def render_figures(stories: Sequence[Story]) -> str:
    """For people: a block for each story, a measure a line, a column for each of its phases."""
    blocks = []
    for story in stories:
        phases = list(dict.fromkeys(phase for figure in story.figures for phase in figure.values))
        rows = [(story.name, "", *phases)]
        for figure in story.figures:
            shown = (f"{figure.values[phase]:,.4g}" if phase in figure.values else "" for phase in phases)
            rows.append((f"  {figure.name}", figure.unit, *shown))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        blocks += [
            "  ".join(
                cell.ljust(width) if place < 2 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        blocks.append("")
    return "\n".join(blocks).rstrip()
