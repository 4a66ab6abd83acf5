"""A thread with a loop of its own for one service (`isolation = "thread"`): what blocks it blocks nobody else.

Calls hop over and results hop back in bursts. A thread cannot be ended from outside: one that does not end by itself
is named in the log and left, and as a daemon it does not keep the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from microkernel.errors import MicrokernelError, NotFound, Unavailable
from microkernel.executor import Executor
from microkernel.executors import Executors
from microkernel.frames import frames_of_threads
from microkernel.instance import KILL_TIMEOUT
from microkernel.isolation.guest import Guest, Order, Source
from microkernel.isolation.link import Link, Serves
from microkernel.isolation.mailbox import Mailbox
from microkernel.isolation.packing import ByReference, Packing
from microkernel.service import Service

__all__ = ["OwnThread"]

T = TypeVar("T")


class OwnThread:
    """The dwelling of one incarnation."""

    def __init__(
        self, name: str, make: Callable[[Order], Awaitable[Service]], executors: Executors, log: logging.Logger
    ) -> None:
        """`make` is run in the thread; `executors` are those of the kernel's loop."""
        self.packing: Packing = ByReference()
        self.source: Source | None = None
        self.import_timeout = 0.0
        self._name = name
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._up: asyncio.Future[tuple[asyncio.AbstractEventLoop, Guest]] = self._loop.create_future()
        self._make = make
        self._executors = executors
        self._thread = threading.Thread(target=self._live, name=f"service {name}", daemon=True)
        self._link: Link
        self._mailbox: Mailbox | None = None
        self._guest_loop: asyncio.AbstractEventLoop | None = None
        self._lost: Callable[[MicrokernelError], None] | None = None

    async def open(self, serves: Serves) -> Link:
        """Start the thread."""
        self._link = Link(self.packing, serves, f"service '{self._name}'")
        self._thread.start()
        self._guest_loop, guest = await self._up
        self._lost = guest.lost
        self._mailbox = Mailbox(self._guest_loop, guest.link.received)
        self._link.transport = self._mailbox
        return self._link

    async def gone(self) -> MicrokernelError:
        """Return once the thread has ended."""
        await asyncio.wait([self._ended])
        return Unavailable(
            f"the thread of service '{self._name}' has ended", service=self._name, retry_after=1.0, may_have_run=True
        )

    async def close(self) -> None:
        """Have the thread end; one that does not is left."""
        if not self._thread.is_alive():
            return
        if self._mailbox is not None:
            self._mailbox.close()
        reason = Unavailable(f"service '{self._name}' has stopped", service=self._name, may_have_run=True)
        if self._guest_loop is not None and self._lost is not None:
            with contextlib.suppress(RuntimeError):  # its loop has closed already: the thread is about to end
                self._guest_loop.call_soon_threadsafe(self._lost, reason)
        await asyncio.wait([self._ended], timeout=KILL_TIMEOUT)
        if self._ended.done():
            self._thread.join()  # this was its last step but one
        else:
            self._log.error("thread '%s' does not end and was left; it is at %s", self._thread.name, self._where())

    def _live(self) -> None:
        """The life of the thread."""
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(self._serve())
        except Exception:  # noqa: BLE001 - nobody is above a thread: what ends it is told here
            self._log.exception("the loop of thread '%s' has ended", self._thread.name)
        self._tell(self._settle, None)

    async def _serve(self) -> None:
        guest = Guest(self._make, BorrowedExecutors(self._executors, self._loop))
        guest.link = Link(self.packing, guest, "the kernel")
        guest.link.transport = Mailbox(self._loop, self._link.received)
        self._tell(self._settle, (asyncio.get_running_loop(), guest))
        await guest.ended.wait()
        await guest.link.close(Unavailable("the service has stopped", service=self._name, may_have_run=True))

    def _tell(self, settle: Callable[[Any], None], value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the kernel's loop has closed: nobody is left to hear of it
            self._loop.call_soon_threadsafe(settle, value)

    def _settle(self, up: tuple[asyncio.AbstractEventLoop, Guest] | None) -> None:
        if up is not None and not self._up.done():
            self._up.set_result(up)
        elif up is None:
            if not self._up.done():
                self._up.set_exception(Unavailable(f"service '{self._name}' got no loop", may_have_run=False))
            self._ended.set_result(None)

    def _where(self) -> str:
        """The line at which the thread stands."""
        frame = frames_of_threads().get(self._thread.ident or 0)
        if frame is None:
            return "its end"
        [line] = traceback.extract_stack(frame, limit=1) or [None]
        return "an unknown place" if line is None else f"{line.filename}:{line.lineno} in {line.name}"


class BorrowedExecutors(Executors):
    """The executors that the service has made itself, and those of the kernel's loop."""

    def __init__(self, kernels: Executors, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._kernels = kernels
        self._loop = loop

    def get(self, name: str) -> Executor:
        """See `Executors.get`."""
        try:
            return super().get(name)
        except NotFound:
            return cast("Executor", _Borrowed(self._kernels.get(name), self._loop))


class _Borrowed:
    """An executor of another loop."""

    def __init__(self, executor: Executor, loop: asyncio.AbstractEventLoop) -> None:
        self._executor = executor
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    async def run(self, function: Callable[..., T], /, *arguments: Any, **options: Any) -> T:
        """See `Executor.run`; the job is handed over by that other loop."""
        work = self._executor.run(function, *arguments, **options)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def finish(self, function: Callable[..., T], /, *arguments: Any, **options: Any) -> T:
        """See `Executor.finish`; shielded here too, as the other loop may not have begun with it yet."""
        work = self._executor.finish(function, *arguments, **options)
        return await asyncio.shield(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop)))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where there is one."""
    if sys.platform == "win32":
        return None
    import uvloop  # noqa: PLC0415 - not there on every platform

    return uvloop.new_event_loop
