"""One thread that writes: what waits is put into one transaction, and one sync makes all of it durable.

What a turn of the loop asks for is handed over together at its end. Those who were told of a commit mostly write again
in one turn: they stay together, and neither the loop nor the thread is woken for each. The results of a transaction
cross to the loop together, after its commit. A change that is refused has changed nothing; where SQLite itself refuses,
the transaction is taken back and its changes are tried one by one.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from microkernel.errors import MicrokernelError, Unavailable
from services.filesystem.messages import Change
from services.filesystem.stored.changes import Changes
from services.filesystem.stored.database import faults_named

__all__ = ["Committer"]

T = TypeVar("T")

MOST = 256  # changes in one transaction


class _Job(msgspec.Struct):
    work: Callable[[Changes], Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None
    told: list[Change] = msgspec.field(default_factory=list)


class Committer:
    """Runs changes on a thread of its own, many to a commit."""

    def __init__(
        self,
        open_changes: Callable[[], Changes],
        *,
        path: Path | None,
        name: str,
        committed: Callable[[int], None],
        remove: Callable[[list[str]], None],
        tell: Callable[[Change], None],
    ) -> None:
        """`open_changes` is called on the thread; `path` is the database's, for errors. `committed` is told of the
        newest version on the disk; `remove` gets contents that came in and were there; `tell` is called on the loop
        with what has changed.
        """
        self._open = open_changes
        self._path = path
        self._committed = committed
        self._remove = remove
        self._tell = tell
        self._jobs: queue.SimpleQueue[list[_Job | None]] = queue.SimpleQueue()
        self._laid: list[_Job | None] = []  # what this turn of the loop has asked for
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    async def start(self) -> None:
        """Open the volume; raises what that raises."""
        self._thread.start()
        await self._ready

    async def run(self, work: Callable[[Changes], T]) -> T:
        """Do `work` and return when what it has changed is on the disk."""
        if self._closed:
            raise Unavailable("the volume is closed", may_have_run=False)
        future: asyncio.Future[T] = self._loop.create_future()
        if not self._laid:
            self._loop.call_soon(self._hand_over)
        self._laid.append(_Job(work, future))
        return await future

    async def close(self) -> None:
        """Finish what waits, and end the thread."""
        if not self._closed:
            self._closed = True
            self._hand_over()
            self._jobs.put([None])
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        try:
            changes = self._open()
        except BaseException as error:  # noqa: BLE001 # told to whoever starts the thread
            self._loop.call_soon_threadsafe(_fail, self._ready, error)
            return
        self._loop.call_soon_threadsafe(_settle, self._ready, None)
        is_open = True
        while is_open:
            batch = self._next()
            is_open = batch[-1] is not None
            jobs = [job for job in batch if job is not None]
            if jobs:
                self._commit(changes, jobs)
                self._loop.call_soon_threadsafe(self._settle, jobs)
        changes.db.close()

    def _hand_over(self) -> None:
        """Give the thread what this turn of the loop has asked for."""
        if self._laid:
            laid, self._laid = self._laid, []
            self._jobs.put(laid)

    def _next(self) -> list[_Job | None]:
        """What is committed together: all that waits."""
        batch = self._jobs.get()
        while len(batch) < MOST and batch[-1] is not None:
            try:
                batch += self._jobs.get_nowait()
            except queue.Empty:
                break
        return batch

    def _commit(self, changes: Changes, jobs: list[_Job]) -> None:
        try:
            with faults_named(self._path):
                self._transaction(changes, jobs)
        except BaseException as error:  # noqa: BLE001 # whatever it is, each change that it hits is told
            for job in jobs:
                if len(jobs) == 1:
                    job.error = error
                else:
                    self._commit(changes, [job])

    def _transaction(self, changes: Changes, jobs: list[_Job]) -> None:
        db = changes.db
        db.execute("BEGIN IMMEDIATE")
        try:
            for job in jobs:
                job.error, first = None, len(changes.told)
                try:
                    job.result = job.work(changes)
                except MicrokernelError as error:
                    job.error = error
                job.told = changes.told[first:]
            is_change = not changes.is_counted
            changes.keep()
            db.execute("COMMIT")
            if is_change:
                self._committed(changes.version)
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            changes.reset()
            raise
        superfluous, changes.superfluous, changes.told = changes.superfluous, [], []
        self._remove(superfluous)

    def _settle(self, jobs: list[_Job]) -> None:
        for job in jobs:
            if job.error is None:
                for change in job.told:
                    self._tell(change)
                _settle(job.future, job.result)
            else:
                _fail(job.future, job.error)


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
