"""A device of some threads on a virtual clock: works come, take turns by a policy, and end. Nothing waits for real."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from itertools import count

import msgspec

from microkernel.policy import Claim, Entry, Policy, ProcessClass

__all__ = ["Simulation", "Work"]


class Work(msgspec.Struct, kw_only=True):
    """What comes at `came` and takes the device for each of `quanta` in turn; `ended` is None while it has not."""

    pid: int
    came: float = 0.0
    quanta: list[float]
    owner: str = "local"
    process_class: ProcessClass = ProcessClass.INTERACTIVE
    nice: int = 0
    deadline: float | None = None
    done: int = 0
    began: float | None = None
    ended: float | None = None

    def claim(self, now: float) -> Claim:
        """For its next turn."""
        return Claim(
            pid=self.pid,
            owner=self.owner,
            process_class=self.process_class,
            nice=self.nice,
            came=self.came,
            since=now,
            deadline=self.deadline,
        )


class Simulation:
    """Runs works on `threads` that take turns by `policy`. `turns` are the pids in the order of their quanta."""

    def __init__(self, policy: Policy, works: Iterable[Work], *, threads: int = 1) -> None:
        self.policy = policy
        self.now = 0.0
        self.turns: list[int] = []
        self.used: dict[str, float] = {}
        self.entries: dict[int, Entry] = {}  # of those that wait, by pid
        self.works = {work.pid: work for work in works}
        self._free = threads
        self._numbers = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        for work in self.works.values():
            self._at(work.came, lambda work=work: self._enter(work))

    def run(self, until: float = float("inf")) -> Simulation:
        """On to a moment, or to the end of all."""
        while self._events and self._events[0][0] <= until:
            self.step()
        return self

    def step(self) -> None:
        """On to the next thing that happens, with all that happens at the same moment."""
        self.now = self._events[0][0]
        while self._events and self._events[0][0] == self.now:
            heapq.heappop(self._events)[2]()
        self._dispatch()

    @property
    def over(self) -> bool:
        """Whether nothing more happens."""
        return not self._events

    def switch(self, policy: Policy) -> None:
        """Go on with another policy, between two events."""
        policy.take_over(self.policy)
        self.policy = policy
        self.entries = {entry.claim.pid: entry for entry in policy.entries()}

    def _at(self, when: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), happens))

    def _enter(self, work: Work) -> None:
        self.entries[work.pid] = self.policy.enter(work.claim(self.now), work)

    def _dispatch(self) -> None:
        while self._free and (entry := self.policy.choose()) is not None:
            self._free -= 1
            work = entry.item
            del self.entries[work.pid]
            self.turns.append(work.pid)
            work.began = self.now if work.began is None else work.began
            self._at(self.now + work.quanta[work.done], lambda entry=entry: self._end(entry))

    def _end(self, entry: Entry) -> None:
        work = entry.item
        seconds = work.quanta[work.done]
        self._free += 1
        self.policy.settle(entry)
        self.policy.charge(entry.claim, seconds)
        self.used[work.owner] = self.used.get(work.owner, 0.0) + seconds
        work.done += 1
        if work.done < len(work.quanta):
            self._enter(work)
        else:
            work.ended = self.now
