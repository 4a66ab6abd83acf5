"""A fair fight: a peer that can be set up in more than one way is measured with the one that it is fastest with.

Each line may have another one. It is found in the first round: the settings take turns at the very question, and the
best number of each counts, so that a disturbance costs none of them the place.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.first_token.contender import Answer, Memory, Prompt
from benchmarks.first_token.worker import RunningWorker, Worker
from benchmarks.measure import Measure

__all__ = ["RunningTuned", "Settings", "Tuned"]

Settings = dict[str, int]


class Tuned:
    """A worker whose engine takes `settings` with a question; `settings` has them by a name that is printed."""

    def __init__(
        self, worker: Worker, settings: dict[str, Settings], *, turns: int, tell: Callable[[str], None]
    ) -> None:
        self.name = worker.name
        self.about = f"{worker.about}; the fastest of: {', '.join(settings)}"
        self.choices: dict[str, str] = {}
        self.settings = settings
        self.turns = turns
        self._worker = worker
        self._tell = tell

    @property
    def command(self) -> list[str]:
        """The worker's."""
        return self._worker.command

    def versions(self) -> dict[str, str]:
        """The worker's."""
        return self._worker.versions()

    def missing(self) -> str | None:
        """What the worker misses."""
        return self._worker.missing()

    def start(self, prompt: Prompt) -> RunningTuned:
        """Start the worker."""
        return RunningTuned(self._worker.start(prompt), self)

    def choose(self, measure: Measure, found: dict[str, float]) -> str:
        """Note which setting was the best, by what was found with each."""
        best = min if measure.less_is_better else max
        chosen = self.choices[measure.name] = best(found, key=found.__getitem__)
        tried = ", ".join(f"{name} {value * measure.scale:.4g}" for name, value in found.items())
        self._tell(f"  {self.name} tried {tried} {measure.unit}: {chosen}")
        return chosen

    def notes(self) -> list[str]:
        """What was chosen, for people: who reads the table is to know what was measured."""
        lines: dict[str, list[str]] = {}
        for measure, choice in self.choices.items():
            lines.setdefault(choice, []).append(measure)
        chosen = [f"{self.name} ran with {choice}: {'; '.join(names)}" for choice, names in lines.items()]
        return chosen + self._worker.notes()


class RunningTuned:
    """The worker, asked with the settings of the line that it is at."""

    def __init__(self, running: RunningWorker, tuned: Tuned) -> None:
        self._running = running
        self._tuned = tuned
        self._settings: Settings = next(iter(tuned.settings.values()))

    def settle(self, measure: Measure, trial: Callable[[], float]) -> None:
        """Take the settings that are best for `measure`; the first time, `trial` is run with each to find out."""
        choice = self._tuned.choices.get(measure.name)
        if choice is None:
            found: dict[str, float] = {}
            best = min if measure.less_is_better else max
            for _ in range(self._tuned.turns):
                for name, settings in self._tuned.settings.items():
                    self._settings = settings
                    value = trial()
                    found[name] = best(value, found.get(name, value))
            choice = self._tuned.choose(measure, found)
        self._settings = self._tuned.settings[choice]

    def generate(self, prompts: list[Prompt], tokens: int) -> list[Answer]:
        """With the settings that hold."""
        return self._running.ask(prompts, tokens, settings=self._settings)

    def memory(self) -> Memory:
        """The worker's."""
        return self._running.memory()

    def close(self) -> None:
        """End the worker."""
        self._running.close()
