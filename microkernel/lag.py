"""How late the loop is, and what made it so: a handler that blocks it is named, a thread that hogs Python as well.

One loop serves everybody, so whatever does not give it back holds up the whole node. The loop beats and a thread looks
at it (`microkernel/watch.py` says how it is decided); the stack says in which method of which service it stood. Each
block is logged once and published on `kernel.lag`. On a node at rest this costs 75 wake-ups a second.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import selectors
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from types import CodeType, FrameType

from microkernel.errors import Invalid
from microkernel.frames import frames_of_threads
from microkernel.message import Message
from microkernel.service import Service, handlers_of
from microkernel.timing import Timing, timing_of
from microkernel.watch import Block, Look, Stack, Watch

__all__ = ["Lag", "LoopBlocked"]

LEAST = 0.01  # seconds; a watch closer than that would be a load itself
WINDOW = 60.0  # seconds over which `timing` tells
SAMPLES = 4096  # more than a minute of beats at the usual threshold
DEPTH = 64  # frames of a stack that are noted
HAND_OVER = 50e-6  # seconds: what it takes to wake a thread
QUIET = 1.0  # seconds between two warnings
LOUD = 0.2  # seconds from which on it is a warning
STOP_TIMEOUT = 1.0  # seconds

log = logging.getLogger("microkernel.kernel")


class LoopBlocked(Message, kw_only=True):
    """The loop stood still for about `seconds`: nothing else ran on this node.

    `service` and `handler` name the method that held it, `where` its file and line and, after an arrow, those of what
    it called. Where another thread held the interpreter, `thread` names it.
    """

    seconds: float
    service: str | None
    handler: str | None
    where: str
    thread: str | None


class Lag:
    """Watches the running loop from `start` to `close`.

    `threshold` is in seconds: a block as long as that is always told, one of half of it never; 0 watches nothing.
    `services` gives the classes of the services there are by name; it is asked on another thread, too. `publish` is
    called on the loop.
    """

    def __init__(
        self,
        threshold: float,
        services: Callable[[], Mapping[str, type[Service] | None]],
        publish: Callable[[LoopBlocked], None],
    ) -> None:
        if threshold and threshold < LEAST:
            raise Invalid(f"lag_threshold is 0 or at least {LEAST:g} s, not {threshold:g}", field="lag_threshold")
        self._threshold = threshold
        self._services = services
        self._publish = publish
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES)
        # Code in which the loop's thread stands when nothing is to do: that of the selector, and what runs uvloop.
        self._rest: set[CodeType] = set()
        for kind in vars(selectors).values():
            code = getattr(getattr(kind, "select", None), "__code__", None)
            if isinstance(code, CodeType):
                self._rest.add(code)
        self._timer: asyncio.Handle | None = None
        self._stop = threading.Lock()
        self._thread: threading.Thread | None = None
        self._told_at = float("-inf")
        self._untold = 0

    def start(self) -> None:
        """Watch the running loop."""
        if not self._threshold or self._thread is not None:
            return
        loop = asyncio.get_running_loop()
        watch = Watch(self._threshold, threading.get_ident(), now=time.monotonic())
        self._timer = loop.call_soon(self._beat, loop, watch)
        self._stop.acquire()
        arguments = (loop, threading.get_ident(), watch)
        self._thread = threading.Thread(target=self._watch, args=arguments, name="lag", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Watch no more; the thread has ended then."""
        if self._thread is None:
            return
        self._stop.release()
        self._thread.join(STOP_TIMEOUT)  # a blocking call, for microseconds: the thread wakes and has nothing to do
        self._thread = None
        if self._timer is not None:
            self._timer.cancel()

    def timing(self) -> Timing:
        """By how much the loop's beats were late in the last minute, in seconds."""
        since = time.monotonic() - WINDOW
        return timing_of([late for when, late in self._samples if when >= since])

    def _beat(self, loop: asyncio.AbstractEventLoop, watch: Watch) -> None:
        """On the loop, as long as it is watched."""
        if time.monotonic() >= watch.due:
            # The watch waits for the interpreter. A busy loop gives that back for microseconds, too short for a thread
            # to wake and take it: up to 0.6 s, and each time is a call of the system, which cost a tenth of all calls.
            time.sleep(HAND_OVER)
        now = time.monotonic()
        self._samples.append((now, max(0.0, watch.beat(now) - watch.interval)))
        below = sys._getframe(1).f_code  # noqa: SLF001 - documented, for debuggers; this is one
        if below is not asyncio.Handle._run.__code__:  # noqa: SLF001 - asyncio's own loop has its selector to rest in
            self._rest.add(below)
        self._timer = loop.call_later(watch.interval, self._beat, loop, watch)

    def _watch(self, loop: asyncio.AbstractEventLoop, thread: int, watch: Watch) -> None:
        """The life of the thread that looks."""
        while not self._stop.acquire(timeout=watch.period):
            if loop.is_closed():
                return
            for block in self._look(watch, loop, thread):
                if not block.over:
                    self._log(self._named(block), block)  # the loop cannot
                    continue
                try:
                    loop.call_soon_threadsafe(self._tell, block)
                except RuntimeError:
                    return  # the loop has closed: nobody is left to hear of it
        self._stop.release()

    def _look(self, watch: Watch, loop: asyncio.AbstractEventLoop, thread: int) -> list[Block]:
        frames = frames_of_threads()
        frame = frames.get(thread)
        stack = None
        if frame is not None and frame.f_code not in self._rest:
            task = asyncio.current_task(loop)
            stack = _stack(frame, None if task is None else task.get_name())

        def stack_of(other: int) -> Stack | None:
            return _stack(frames[other], None) if other in frames else None

        return watch.look(Look(time.monotonic(), stack, _processor()), stack_of)

    def _tell(self, block: Block) -> None:
        blocked = self._named(block)
        self._log(blocked, block)
        if not block.starved:
            self._publish(blocked)

    def _named(self, block: Block) -> LoopBlocked:
        seconds = round(block.seconds, 4)
        # Where the loop rests is known from its first turn on: what was seen before that may have been just this.
        stacks = [stack for stack in block.stacks if stack.frames[0][0] not in self._rest]
        if stacks:
            services = self._services()
            methods = _methods(services)
            culprits = Counter(_culprit(stack, methods, services) for stack in stacks)
            [((service, handler, where), _)] = culprits.most_common(1)
            return LoopBlocked(seconds=seconds, service=service, handler=handler, where=where, thread=None)
        if block.holders:
            names = {thread.ident: thread.name for thread in threading.enumerate()}
            threads = [names.get(holder.thread, "that has ended") for holder in block.holders]
            stack = block.holders[0].stack
            where = "unknown" if stack is None else _place(*stack.frames[0])
            return LoopBlocked(seconds=seconds, service=None, handler=None, where=where, thread=" or ".join(threads))
        where = "the machine ran other programs" if block.starved else "unknown"
        return LoopBlocked(seconds=seconds, service=None, handler=None, where=where, thread=None)

    def _log(self, blocked: LoopBlocked, block: Block) -> None:
        if block.starved:
            log.info("the node had no turn on the processor for %.2f s", blocked.seconds)
            return
        if blocked.seconds < LOUD:  # on `kernel.lag` and in `kernel.status`, but nothing to trouble a reader with
            log.info("%s for %.2f s (%s)", _what(blocked), blocked.seconds, blocked.where)
            return
        now = time.monotonic()
        if now - self._told_at < QUIET:
            self._untold += 1
            return
        untold, self._untold, self._told_at = self._untold, 0, now
        log.warning(
            "%s for %.2f s%s (%s)%s",
            _what(blocked),
            blocked.seconds,
            "" if block.over else " and goes on",
            blocked.where,
            f"; {untold} blocks before it were not logged" if untold else "",
        )


def _what(blocked: LoopBlocked) -> str:
    if blocked.thread is not None:
        return f"thread {blocked.thread} held the interpreter, and with it the loop,"
    if blocked.service is not None:
        return f"{blocked.service}.{blocked.handler} held the loop"
    return f"{blocked.handler or 'something'} held the loop"


def _processor() -> dict[int, float]:
    """Seconds that each thread has computed; empty where the system has no such clock."""
    if sys.platform != "linux":
        return {}
    used = {}
    for thread in threading.enumerate():
        if thread.ident is None or thread.native_id is None:
            continue
        try:
            # clock_gettime(2), MAKE_THREAD_CPUCLOCK of the kernel. A thread that has ended is an error here; with
            # pthread_getcpuclockid it would be a crash.
            used[thread.ident] = time.clock_gettime((~thread.native_id << 3) | 6)
        except OSError:
            continue
    return used


def _stack(frame: FrameType | None, task: str | None) -> Stack:
    frames: list[tuple[CodeType, int]] = []
    while frame is not None and len(frames) < DEPTH:
        frames.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return Stack(tuple(frames), task)


def _methods(services: Mapping[str, type[Service] | None]) -> dict[CodeType, tuple[str, str]]:
    """Service and name of each method by its code."""
    methods = {}
    for name, kind in services.items():
        if kind is None:
            continue
        handlers = {handler.attribute: handler.name for handler in handlers_of(kind)}
        for each in kind.__mro__[: kind.__mro__.index(Service)]:
            for attribute, value in vars(each).items():
                code = getattr(inspect.unwrap(getattr(value, "fget", value)), "__code__", None)
                if isinstance(code, CodeType):
                    methods[code] = (name, handlers.get(attribute, attribute))
    return methods


def _culprit(
    stack: Stack, methods: Mapping[CodeType, tuple[str, str]], services: Container[str]
) -> tuple[str | None, str | None, str]:
    """Service, method and place: of the innermost method of a service; else what the task's name says."""
    innermost = _place(*stack.frames[0])
    for code, line in stack.frames:
        if code in methods:
            place = _place(code, line)
            return *methods[code], place if place == innermost else f"{place} → {innermost}"
    owner, _, work = (stack.task or "").partition(":")
    if work and owner in services:
        return owner, work, innermost
    return None, stack.task and f"task {stack.task}", innermost


def _place(code: CodeType, line: int) -> str:
    """File and line, the file as it is imported from where it can be."""
    file = code.co_filename
    for folder in sorted({str(Path(entry)) for entry in sys.path if entry}, key=len, reverse=True):
        if file.startswith(f"{folder}/"):
            file = file.removeprefix(f"{folder}/")
            break
    return f"{file}:{line}"
