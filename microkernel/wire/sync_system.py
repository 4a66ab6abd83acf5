"""The client for scripts without a loop: a thread of its own runs one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, TypeVar

from microkernel.wire.inbox import Monitor, Stream, Subscription
from microkernel.wire.system import System

__all__ = ["SyncStream", "SyncSystem"]

T = TypeVar("T")


class SyncSystem:
    """A node, for code that waits: the calls of `System` without `await`. Threads may share it."""

    def __init__(self, opening: AbstractAsyncContextManager[System]) -> None:
        """Made by `connect_sync`."""
        self._opening = opening
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="microkernel client", daemon=True)
        self._thread.start()
        try:
            self._system = self._wait(opening.__aenter__())
        except BaseException:
            self._stop()
            raise

    def call(self, to: str, message: Any = None, /, **options: Any) -> Any:
        """`System.call`."""
        return self._wait(self._system.call(to, message, **options))

    def stream(self, to: str, message: Any = None, /, **options: Any) -> SyncStream:
        """`System.stream`, to iterate over with `for`."""
        return SyncStream(self, self._system.stream(to, message, **options))

    def send(self, to: str, message: Any = None, /, **options: Any) -> None:
        """`System.send`."""
        self._wait(self._system.send(to, message, **options))

    def publish(self, subject: str, message: Any = None, /, **fields: Any) -> None:
        """`System.publish`."""
        self._wait(self._system.publish(subject, message, **fields))

    def subscribe(self, subject: str, group: str | None = None, *, since: int | None = None) -> SyncStream:
        """`System.subscribe`: an iterator of events; the subscription stands when this returns."""
        subscription = self._system.subscribe(subject, group, since=since)
        self._wait(subscription.__aenter__())
        return SyncStream(self, subscription)

    def monitor(self, service: str) -> SyncStream:
        """`System.monitor`: an iterator of `Up` and `Down`."""
        monitor = self._system.monitor(service)
        self._wait(monitor.__aenter__())
        return SyncStream(self, monitor)

    @property
    def system(self) -> System:
        """The client this one wraps; its methods belong to the thread of its loop."""
        return self._system

    def close(self) -> None:
        """Close the link; once more does nothing."""
        if self._thread.is_alive():
            try:
                self._wait(self._opening.__aexit__(None, None, None))
            finally:
                self._stop()

    def __enter__(self) -> SyncSystem:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C while waiting: the call ends, here and there.
            future.cancel()
            raise

    def _stop(self) -> None:
        # Names of hosts and files are looked up in threads of the loop's.
        asyncio.run_coroutine_threadsafe(self._loop.shutdown_default_executor(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class SyncStream:
    """Items or events, to iterate over; `close`, or the end of a `with`, ends it early."""

    def __init__(self, owner: SyncSystem, source: Stream | Subscription | Monitor) -> None:
        self._owner = owner
        self._source = source

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        ended, item = self._owner._wait(self._take())  # noqa: SLF001 - one class in two halves
        if ended:
            raise StopIteration
        return item

    def send(self, item: Any) -> None:
        """`Stream.send`: give the handler an item; of a stream only."""
        assert isinstance(self._source, Stream)
        self._owner._wait(self._source.send(item))  # noqa: SLF001 - one class in two halves

    def finish(self) -> None:
        """`Stream.finish`: give the handler no more items; of a stream only."""
        assert isinstance(self._source, Stream)
        self._owner._wait(self._source.finish())  # noqa: SLF001 - one class in two halves

    def close(self) -> None:
        """End it early."""
        self._owner._wait(self._source.aclose())  # noqa: SLF001 - one class in two halves

    def __enter__(self) -> SyncStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _take(self) -> tuple[bool, Any]:
        try:
            return False, await anext(self._source)
        except StopAsyncIteration:
            return True, None
