"""A job's turns on its device: its processes run while it has one, and are stopped while others have theirs.

Work of the node runs on the device's compute thread, a quantum at a time. That of a job runs in processes of its own,
so its quantum is a wait on that thread: until somebody else wants the device, or for a while. Then the processes are
stopped where they are, within a step, and go on where they were when the job has its next turn. So a question of a
person waits for a signal, and not for a step.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable

from microkernel.executor import Executor
from microkernel.policy import Claim
from microkernel.processes import OwnProcess
from services.training.agent.forks import Forked

__all__ = ["Turns"]

SLICE = 0.5  # seconds of a turn, after which it is accounted
LEAST = 0.1  # seconds of a turn that others of the same class leave it: a step is cut, and caches are warm by then
GRACE = 0.02  # seconds after somebody's question in which the next part of its answer is waited for
LOOK = 0.05  # seconds between two looks at what nobody rings for


class Turns:
    """Lets the processes of one job run in turns with all else on a device."""

    def __init__(self, process: OwnProcess, executor: Executor, device: str) -> None:
        self._process = process
        self._executor = executor
        self._device = device
        self._running: tuple[Forked, ...] = ()
        self._lock = threading.Lock()  # who runs, and whether they may: the loop and the compute thread share both
        self._has_turn = False
        self._over = False
        self._gave_way = False  # the last turn ended for somebody more urgent
        self._keeps: Callable[[], bool] = lambda: False
        self.since = time.monotonic()  # when the last turn began

    @property
    def has_turn(self) -> bool:
        """Whether the processes may run now."""
        return self._has_turn

    def add(self, forked: Forked) -> None:
        """One more process; it is stopped at once where it is not the job's turn."""
        with self._lock:
            self._running = (*self._running, forked)
            if not self._has_turn:
                forked.send(signal.SIGSTOP)

    def remove(self, forked: Forked) -> None:
        """A process has ended."""
        with self._lock:
            self._running = tuple(each for each in self._running if each is not forked)

    def keep_while(self, wanted: Callable[[], bool]) -> None:
        """Have a paused job keep its turn as long as `wanted` says so: it has something to bring to an end."""
        self._keeps = wanted

    async def take(self) -> None:
        """Take turn after turn, until cancelled."""
        try:
            while True:
                await self._process.run(self._device, self._turn)
        finally:
            self._over = True

    def _turn(self) -> None:
        """One turn, on the compute thread."""
        if self._gave_way and self._executor.rest_until_wanted(GRACE, self._goes_before):
            return
        self._gave_way = False
        began = time.monotonic()
        self._let_run(began)
        try:
            while not self._over:
                if self._process.paused:
                    if not self._keeps():
                        return
                elif time.monotonic() - began >= SLICE:
                    return
                wants = _anybody if time.monotonic() - began >= LEAST else self._goes_before
                if self._executor.rest_until_wanted(LOOK, wants) and not self._process.paused:
                    self._gave_way = wants == self._goes_before
                    return
        finally:
            self._stop()

    def _goes_before(self, claim: Claim) -> bool:
        """Whether work is more urgent than this job, so that it does not wait at all."""
        return claim.process_class.rank < self._process.claim.process_class.rank

    def _let_run(self, now: float) -> None:
        with self._lock:
            self.since = now
            self._has_turn = True
            _send(self._running, signal.SIGCONT)

    def _stop(self) -> None:
        with self._lock:
            self._has_turn = False
            _send(self._running, signal.SIGSTOP)


def _anybody(_: Claim) -> bool:
    return True


def _send(processes: Iterable[Forked], number: signal.Signals) -> None:
    for forked in processes:
        forked.send(number)
