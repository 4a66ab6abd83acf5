"""One question of the benchmark: who is asked it, in which processes, and what the answer ought to be."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

import msgspec

from benchmarks.measure import Measure
from benchmarks.messages.process import Process

__all__ = ["Contender", "Goal", "Line", "Question", "Running", "ask"]


class Contender(msgspec.Struct, frozen=True):
    """What takes part. `client` and `server` are classes (`module:Class`), each made in a process of its own.

    The server is started first; the client, and whoever is to make noise `beside` it, are given its address. `packages`
    are modules it imports, with the names
    of their packages; `requires` (`module:Class.attribute`) is a part of ours without which it cannot take part.
    """

    name: str
    about: str
    client: str
    server: str | None = None
    beside: str | None = None
    packages: dict[str, str] = {}
    requires: str | None = None

    def missing(self) -> str | None:
        """Why it cannot take part, or None."""
        absent = [package for module, package in self.packages.items() if importlib.util.find_spec(module) is None]
        if absent:
            return f"not installed: {', '.join(absent)}"
        if self.requires is not None and not _is_there(self.requires):
            return f"there is no {self.requires.partition(':')[2]} yet"
        return None

    def commands(self) -> list[list[str]]:
        """How its processes are started."""
        return [Process.command(each) for each in (self.server, self.client, self.beside) if each is not None]


class Running(msgspec.Struct, frozen=True):
    """The processes of a contender that has started."""

    client: Process
    server: Process | None = None
    beside: Process | None = None

    def close(self) -> None:
        """End them, the server last."""
        for each in (self.beside, self.client, self.server):
            if each is not None:
                each.close()


class Goal(msgspec.Struct, frozen=True):
    """What one number of ours ought to be: `bound` times as good as `against`, or `bound` in the measure's own unit."""

    key: str
    bound: float
    against: str | None = None


Question = Callable[[Running, bool], dict[str, float]]
"""Takes the numbers of one contender, by the line's keys; told whether it is to be quick. Raises `Broken`."""


class Line(msgspec.Struct, frozen=True):
    """A question with its measures by key; of its contenders the first that is there is ours.

    `rounds` is how many are worth taking at most. With `fresh`, each round has new processes.
    """

    name: str
    measures: dict[str, Measure]
    contenders: tuple[Contender, ...]
    question: Question
    goals: tuple[Goal, ...] = ()
    rounds: int | None = None
    fresh: bool = False


def ask(method: str, *, seconds: float = 0.4, quick: float = 0.05, **options: object) -> Question:
    """The question that is a method of the client's; it measures for so many `seconds`, or for `quick` ones."""

    def question(running: Running, is_quick: bool) -> dict[str, float]:
        found = running.client.ask(method, seconds=quick if is_quick else seconds, **options)
        return found if isinstance(found, dict) else {method: found}

    return question


def _is_there(name: str) -> bool:
    module, _, path = name.partition(":")
    try:
        found: object = importlib.import_module(module)
    except ModuleNotFoundError:
        return False
    for attribute in path.split("."):
        found = getattr(found, attribute, None)
    return found is not None
