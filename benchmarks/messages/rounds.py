"""The rounds of a line: its contenders start, are asked in an order that turns, and end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.measure import Round
from benchmarks.messages.line import Contender, Line, Running
from benchmarks.messages.process import Broken, Process

__all__ = ["Rounds", "start"]

Start = Callable[[Contender, Path], Running]


def start(contender: Contender, log: Path) -> Running:
    """Start the processes of `contender`, the server's first. Raises `Broken`."""
    with ExitStack() as started:

        def process(target: str | None, address: str = "") -> Process | None:
            if target is None:
                return None
            made = Process(target, log, address)
            started.callback(made.close)
            return made

        server = process(contender.server)
        address = "" if server is None else server.ask("address")
        client = process(contender.client, address)
        assert client is not None
        running = Running(client, server, process(contender.beside, address))
        started.pop_all()  # they stay
        return running


class Rounds:
    """Runs the rounds of one line. A contender that breaks is left out from then on; `left` says why."""

    def __init__(
        self,
        line: Line,
        contenders: Sequence[Contender],
        logs: Path,
        *,
        quick: bool,
        tell: Callable[[str], None],
        start: Start = start,
    ) -> None:
        self.left: dict[str, str] = {}
        self.found: list[Round] = []
        self._line = line
        self._contenders = list(contenders)
        self._logs = logs
        self._quick = quick
        self._tell = tell
        self._start = start

    def run(self, count: int) -> list[Round]:
        """So many rounds, or as many as are worth taking; complete ones stay in `found` when one is interrupted."""
        count = min(count, self._line.rounds or count)
        self._tell(f"{self._line.name}: {count} rounds")
        if self._line.fresh:
            for number in range(count):
                with self._running(number) as running:
                    self.found.append(self._round(number, running))
        else:
            with self._running(0) as running:
                for number in range(count):
                    self.found.append(self._round(number, running))
        return self.found

    @contextmanager
    def _running(self, number: int) -> Iterator[dict[str, Running]]:
        with ExitStack() as open_ones:
            running: dict[str, Running] = {}
            for contender in self._order(number):
                try:
                    started = self._start(contender, self._logs / f"{self._line.name}.{contender.name}.log")
                except Broken as error:
                    self._leave(contender, error)
                    continue
                open_ones.callback(started.close)
                running[contender.name] = started
            yield running

    def _round(self, number: int, running: dict[str, Running]) -> Round:
        found: Round = {}
        for contender in self._order(number):
            try:
                values = self._line.question(running[contender.name], self._quick)
            except Broken as error:
                self._leave(contender, error)
                continue
            found[contender.name] = {self._line.measures[key].name: value for key, value in values.items()}
            shown = (
                f"{value * self._line.measures[key].scale:.4g} {self._line.measures[key].unit}"
                for key, value in values.items()
            )
            self._tell(f"  {number + 1}. {contender.name}: {', '.join(shown)}")
        return found

    def _order(self, number: int) -> list[Contender]:
        turn = number % len(self._contenders)
        turned = [*self._contenders[turn:], *self._contenders[:turn]]
        return [contender for contender in turned if contender.name not in self.left]

    def _leave(self, contender: Contender, error: Broken) -> None:
        self.left[contender.name] = str(error)
        self._tell(f"  {contender.name} is out: {error}")
