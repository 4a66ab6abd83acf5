"""A map as a state machine: tasks are assigned, done, lost or copied, and each counts once. A plain class; no loop.

A task may run more than once: after its worker was lost, and as a second copy when it is slow. The attempt that is done
first counts; the fence of its number keeps the others out. A task that has cost two workers is cut in half, and its
halves again, until one item is left: that one is done while nothing else is, so that nobody else's end is laid to it,
and fails by its name if its worker is lost then, too. It waits until nothing is left to do, or until it is the next
whose result is waited for.

Tasks that take no time are assigned several at once. Where their worker is lost, none of them is to blame, as all but
one had ended or not begun: each is done again, apart from others, and to blame for what happens then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import count

import msgspec

from services.scheduler.mapping.partition import Partition

__all__ = ["Attempt", "Job", "Task"]

MOST_KILLED = 2  # workers that a task may cost
SLOW = 2.0  # times what its items should take: then it is copied, where a worker has nothing else to do
LEAST_AGE = 0.02  # seconds before which nothing is copied
MOST_TOGETHER = 32  # tasks that are assigned at once: as many results come back to the loop at once
TASKS_AHEAD = 4  # of each worker, that may be done before the first result is taken
NEWEST = 0.2  # weight of the newest task in what an item is taken to take


class Task:
    """The items from `start` up to `stop`, of a task of the partition, `whole`, that may have had more."""

    __slots__ = ("apart", "attempts", "done", "killed", "start", "stop", "whole")

    def __init__(self, start: int, stop: int, *, killed: int = 0, whole: tuple[int, int] | None = None) -> None:
        self.start = start
        self.stop = stop
        self.whole = whole or (start, stop)
        self.killed = killed
        self.apart = killed > 0  # whether it is assigned with no others: it may be at fault
        self.done = False
        self.attempts: list[Attempt] = []  # that run now

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def is_part(self) -> bool:
        """Whether it was cut out of a larger one."""
        return self.whole != (self.start, self.stop)


class Attempt(msgspec.Struct, frozen=True, eq=False):
    """One run of a task: `number` is its fence, and no two of a job have the same."""

    number: int
    task: Task
    began: float


class Job:
    """The tasks of one map. Times are seconds on the caller's clock."""

    def __init__(
        self,
        items: int,
        partition: Partition,
        workers: int,
        *,
        window: int,
        divisible: bool = True,
        done: Iterable[tuple[int, int]] = (),
        copies: bool = True,
    ) -> None:
        """`items` in all, of which those in `done` (pairs of start and stop) are done already.

        No item is assigned that is `window` or more behind the first whose result was not taken, and more than what
        four tasks for each worker have. Tasks that are not
        `divisible` are never cut in half.
        """
        self.items = items
        self.done_items = 0
        self.taken = 0  # results up to this item are out of the way
        self.lost_workers = self.copied = 0
        self._partition = partition
        self._workers = workers
        self._window = window
        self._divisible = divisible
        self._copies = copies
        self._gaps = deque(_gaps(items, done))
        self._left = sum(stop - start for start, stop in self._gaps)
        self.done_items = items - self._left
        self._again: deque[Task] = deque()
        self._suspects: deque[Task] = deque()  # that may be at fault, and are done alone
        self._alone: Attempt | None = None
        self._running: dict[int, Attempt] = {}
        self._numbers = count(1)
        self._most_together = MOST_TOGETHER
        self._each = 0.0  # seconds of an item
        self._size = 0  # items of the newest task

    @property
    def finished(self) -> bool:
        """Whether every item is done."""
        return self.done_items == self.items

    @property
    def has_more(self) -> bool:
        """Whether there is a task that nobody has begun."""
        if self._alone is not None:
            return False
        if self._due is not None:
            return not self._running
        return bool(self._again) or self._is_open or self._may_try_suspect

    def assign(self, now: float, *, ahead: int = 0) -> Attempt | None:
        """What a worker is to do next, that has so many batches to do before; None where there is nothing, now."""
        if self._alone is not None:
            return None
        if self._due is not None and self._running:
            return self._copy(now, ahead) if self._copies else None
        if self._again and self._due is None:
            return self._begin(self._again.popleft(), now)
        if self._is_open and self._due is None:
            start, stop = self._gaps.popleft()
            size = min(self._partition.next(start, self._left, self._workers), stop - start)
            self._left -= size
            self._size = size
            if start + size < stop:
                self._gaps.appendleft((start + size, stop))
            return self._begin(Task(start, start + size), now)
        if self._may_try_suspect:
            suspect = self._due or self._suspects[0]
            self._suspects.remove(suspect)
            self._alone = self._begin(suspect, now)
            return self._alone
        return self._copy(now, ahead) if self._copies else None

    def assign_some(self, now: float, seconds: float, *, ahead: int = 0) -> list[Attempt]:
        """As `assign`, with as many of the tasks that follow as should take `seconds` together."""
        attempt = self.assign(now, ahead=ahead)
        found: list[Attempt] = []
        expected = 0.0
        while attempt is not None:
            found.append(attempt)
            expected += self._each * len(attempt.task)
            full = expected >= seconds or len(found) >= self._most_together
            if full or expected == 0.0 or attempt.task.apart or not self._may_add:
                break
            attempt = self.assign(now)
        return found

    def commit(self, attempt: Attempt, seconds: float) -> bool:
        """The attempt is done, and was worked at for so long; whether its result counts.

        Other attempts of the task may be cancelled then.
        """
        task = attempt.task
        self._no_longer_alone(attempt)
        if self._running.pop(attempt.number, None) is None or task.done:
            return False
        task.attempts.remove(attempt)
        task.done = True
        self.done_items += len(task)
        self._partition.note(len(task), seconds)
        each = seconds / len(task)
        self._each = each if self._each == 0.0 else self._each + NEWEST * (each - self._each)
        return True

    def cancel(self, attempt: Attempt) -> None:
        """It runs no longer, for no fault of its own: its task is assigned again, if nobody else has it or had it."""
        was_alone = self._no_longer_alone(attempt)
        if self._running.pop(attempt.number, None) is None:
            return
        task = attempt.task
        task.attempts.remove(attempt)
        if not task.done and not task.attempts:
            (self._suspects if was_alone else self._again).append(task)

    def lose(self, attempt: Attempt) -> Task | None:
        """Its worker is gone, with it. A task that is at fault is returned: it counts as done, and has failed."""
        task = attempt.task
        self._no_longer_alone(attempt)
        if self._running.pop(attempt.number, None) is None:
            return None
        was_alone = not self._running
        task.attempts.remove(attempt)
        self.lost_workers += 1
        task.killed += 1
        task.apart = True
        if task.done or task.attempts:
            return None
        if len(task) == 1 or not self._divisible:
            if not was_alone or task.killed < MOST_KILLED:
                (self._again if task.killed < MOST_KILLED else self._suspects).append(task)
                return None
            task.done = True
            self.done_items += len(task)
            return task
        if task.killed < MOST_KILLED:
            self._again.append(task)
            return None
        middle = (task.start + task.stop) // 2
        for start, stop in ((task.start, middle), (middle, task.stop)):
            self._again.append(Task(start, stop, killed=MOST_KILLED - 1, whole=task.whole))
        return None

    def lose_some(self, attempts: Sequence[Attempt]) -> Task | None:
        """As `lose`, for all that one worker was given at once; of several none is to blame yet."""
        if len(attempts) == 1:
            return self.lose(attempts[0])
        self.lost_workers += 1
        self._part(attempts)
        return None

    def refuse(self, attempts: Sequence[Attempt]) -> None:
        """Together they could not be done, as when they are too much for one message: each is done apart."""
        self._most_together = max(1, self._most_together // 2)
        self._part(attempts)

    def _part(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            attempt.task.apart = True
            self.cancel(attempt)

    @property
    def _may_add(self) -> bool:
        """Whether the next task may be assigned together with others."""
        return self.has_more and not (self._again and self._again[0].apart)

    @property
    def _due(self) -> Task | None:
        """One that may be at fault, and whose result is waited for: nothing else is begun until it is done."""
        return next((task for task in self._suspects if task.start <= self.taken), None)

    @property
    def _may_try_suspect(self) -> bool:
        """Whether one that may be at fault can be done now: nothing else is."""
        return bool(self._suspects) and not self._running

    def _no_longer_alone(self, attempt: Attempt) -> bool:
        """Whether this one was done alone; others may be begun again."""
        was_alone = attempt is self._alone
        if was_alone:
            self._alone = None
        return was_alone

    @property
    def _is_open(self) -> bool:
        """Whether there is a task to begin that is not too far ahead."""
        window = max(self._window, TASKS_AHEAD * self._workers * self._size)
        return bool(self._gaps) and self._gaps[0][0] < self.taken + window

    def _begin(self, task: Task, now: float) -> Attempt:
        attempt = Attempt(next(self._numbers), task, now)
        task.attempts.append(attempt)
        self._running[attempt.number] = attempt
        return attempt

    def _copy(self, now: float, ahead: int) -> Attempt | None:
        """One more attempt at the task that has run longest, if it is slow: whichever ends first, counts.

        Where workers have others `ahead`, it may only have waited behind these. With each attempt that is slow too,
        the next one is longer in coming: of any number of workers all but one may be frozen.
        """
        if self._each == 0.0:
            return None
        slow = [
            attempt
            for attempt in self._running.values()
            if attempt is attempt.task.attempts[-1]
            and not attempt.task.done
            and not attempt.task.killed  # it would cost the other worker, too
            and now - attempt.began > self._patience(attempt.task, ahead)
        ]
        if not slow:
            return None
        self.copied += 1
        return self._begin(min(slow, key=lambda attempt: attempt.began).task, now)

    def _patience(self, task: Task, ahead: int) -> float:
        """Seconds until its newest attempt is slow."""
        return float((1 + ahead) * 2 ** (len(task.attempts) - 1) * max(LEAST_AGE, SLOW * self._each * len(task)))


def _gaps(items: int, done: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is left of `items` beside `done`."""
    gaps = []
    place = 0
    for start, stop in sorted(done):
        if start > place:
            gaps.append((place, start))
        place = max(place, stop)
    if place < items:
        gaps.append((place, items))
    return gaps
