"""When the first worker of a group makes checkpoints, and what it tells of them."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from microkernel.errors import NotFound
from services.training.checkpoints.channel import Failed, Opened, Written
from services.training.checkpoints.folder import CheckpointFolder
from services.training.checkpoints.interval import Costs, Faults, interval_steps
from services.training.checkpoints.keys import SigningKey, TrustedKeys
from services.training.checkpoints.saver import CheckpointSaver, LeftOut, Restarted, Taken
from services.training.checkpoints.state import TrainingState
from services.training.job_file import JobFile
from services.training.orders import Noted, Report, Saved

__all__ = ["Keeping", "newest_state"]

STEPS = 32  # the last ones, by which the length of a step is judged
FIRST = 10.0  # seconds until the first checkpoint, by which the cost of the others is measured
PATIENCE = 600.0  # seconds that one may take to be written before it is given up


class Keeping:
    """Makes checkpoints of one job. For the thread of its steps; close it."""

    def __init__(self, job: JobFile, state: TrainingState, tell: Callable[[Report], None], faults: Faults) -> None:
        """`state` is one like those that are to be kept. Raises what `CheckpointSaver` raises."""
        key = Path(job.key)
        self._every = job.config.checkpoints.every
        self._tell = tell
        self._faults = faults
        self._saver = CheckpointSaver(
            state,
            folder=Path(job.folder) / "checkpoints",
            job=job.job,
            key=key,
            keep=job.config.checkpoints.keep,
            trusted=(SigningKey.at(key).public,),
        )
        self._seconds: deque[float] = deque(maxlen=STEPS)
        self._blocked = self._written = 0.0
        self._last_step = state.facts.step
        self._last_time = time.monotonic()
        self._measured = False

    def stepped(self, step: int, seconds: float) -> bool:
        """A step is done; whether a checkpoint is due."""
        self._seconds.append(seconds)
        self._told(self._saver.poll())
        if self._every is not None:
            return step % self._every == 0
        if not self._measured:
            return time.monotonic() - self._last_time >= FIRST
        costs = Costs(max(1e-6, statistics.median(self._seconds)), self._blocked, self._written)
        return step - self._last_step >= interval_steps(costs, self._faults)

    def save(self, state: TrainingState) -> None:
        """Have a checkpoint made, while training goes on."""
        match self._saver.save(state):
            case Taken() as taken:
                self._blocked = taken.seconds
            case LeftOut() as left:
                self._tell(Noted(text=f"no checkpoint of step {left.step}: {left.why}"))
        self._measured = True
        self._last_step, self._last_time = state.facts.step, time.monotonic()

    def settle(self) -> None:
        """Wait until what was begun is written. Raises `DeadlineExceeded`."""
        self._told(self._saver.wait(PATIENCE))

    def close(self) -> None:
        """Let the writer finish, and end it."""
        self._told(self._saver.close(PATIENCE))

    def _told(self, events: list[Opened | Written | Failed | Restarted]) -> None:
        for event in events:
            notes: tuple[str, ...] = ()
            match event:
                case Written():
                    self._written = event.seconds
                    self._tell(Saved(step=event.step, number=event.number, bytes=event.bytes, seconds=event.seconds))
                    notes = event.notes
                case Opened():
                    notes = event.notes
                case Failed():
                    notes = (f"a checkpoint was not made: {event.error.message}",)
                case Restarted():
                    notes = (f"the writer of checkpoints has ended with status {event.status}, another one goes on",)
            for note in notes:
                self._tell(Noted(text=note))


def newest_state(job: JobFile, tell: Callable[[Report], None]) -> TrainingState | None:
    """The newest checkpoint of a job that is whole; None where there never was one. Raises `DataLoss`."""
    trusted = TrustedKeys([SigningKey.at(Path(job.key)).public])
    try:
        _, state, notes = CheckpointFolder(Path(job.folder) / "checkpoints", job.job, trusted).newest()
    except NotFound:
        return None
    for note in notes:
        tell(Noted(text=note))
    return state
