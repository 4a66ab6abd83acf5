"""The rounds: every contender starts, is asked each thing in its turn, and ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.first_token.contender import Broken, Contender, Running
from benchmarks.first_token.measures import FIRST_START, MEMORY, PRIVATE, READY, Task
from benchmarks.first_token.prompts import Prompts
from benchmarks.measure import Round

__all__ = ["Rounds"]


class Rounds:
    """Runs rounds. A contender that breaks is left out from then on; `left` says why, `notes` what else to know.

    `tasks` makes those of one round, with prompts that are new. With `first_start`, each contender is started once
    before the first round: on empty state.
    """

    def __init__(
        self,
        contenders: Sequence[Contender],
        prompts: Prompts,
        tasks: Callable[[], Sequence[Task]],
        *,
        first_start: bool,
        tell: Callable[[str], None],
    ) -> None:
        self.left: dict[str, str] = {}
        self.notes: list[str] = []
        self._contenders = list(contenders)
        self._prompts = prompts
        self._tasks = tasks
        self._first_start = first_start
        self._tell = tell

    def run(self, number: int) -> Round:
        """Round `number`, from 0."""
        turn = number % len(self._contenders)
        order = [*self._contenders[turn:], *self._contenders[:turn]]
        found: Round = {contender.name: {} for contender in order}
        if number == 0 and self._first_start:
            for contender in self._present(order):
                self._try(contender, partial(self._start_first, contender, found))
        running: dict[str, Running] = {}
        try:
            for contender in self._present(order):
                self._try(contender, partial(self._start, contender, found, running))
            for task in self._tasks():
                self._tell(f"round {number + 1}: {task.measure.name}")
                for contender in self._present(order):
                    self._try(contender, partial(self._ask, contender, task, found, running))
            for contender in self._present(order):
                memory = running[contender.name].memory()
                found[contender.name][MEMORY.name] = memory.peak
                if memory.private is not None:
                    found[contender.name][PRIVATE.name] = memory.private
        finally:
            for each in running.values():
                each.close()
        return found

    def _present(self, order: Sequence[Contender]) -> list[Contender]:
        return [contender for contender in order if contender.name not in self.left]

    def _try(self, contender: Contender, step: Callable[[], None]) -> None:
        if contender.name in self.left:
            return
        try:
            step()
        except Broken as error:
            self.left[contender.name] = str(error)
            self._tell(f"{contender.name} is out: {error}")

    def _start_first(self, contender: Contender, found: Round) -> None:
        self._tell(f"first start of {contender.name}")
        began = time.perf_counter()
        running = contender.start(self._prompts.short()[0])
        found[contender.name][FIRST_START.name] = time.perf_counter() - began
        running.close()

    def _start(self, contender: Contender, found: Round, running: dict[str, Running]) -> None:
        self._tell(f"start of {contender.name}")
        prompt = self._prompts.short()[0]
        began = time.perf_counter()
        running[contender.name] = contender.start(prompt)
        found[contender.name][READY.name] = time.perf_counter() - began

    def _ask(self, contender: Contender, task: Task, found: Round, running: dict[str, Running]) -> None:
        values, fewest = task.take(running[contender.name])
        found[contender.name] |= {measure.name: value for measure, value in values.items()}
        if fewest < task.tokens:
            self.notes.append(
                f"{contender.name}: {task.measure.name}: an answer ended after {fewest} of {task.tokens} tokens"
            )
        shown = ", ".join(f"{value * measure.scale:.4g} {measure.unit}" for measure, value in values.items())
        self._tell(f"  {contender.name}: {shown}")
