"""An event loop with a virtual clock: time stands still while something can run, and jumps when nothing can.

After FoundationDB's simulation (https://apple.github.io/foundationdb/testing.html): one thread, no socket, no clock of
the machine's, and every choice taken from a seed, so that a run is repeated by its seed. Order is asyncio's own; with
`shuffle` the tasks that are ready at the same moment run in an order of the seed's, which no program may rely on.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import random
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from microkernel.testing.network import Network, Server

__all__ = ["SimulatedLoop", "SimulationError", "name_of"]

T = TypeVar("T")

EPOCH = 1_700_000_000.0  # Unix time at which the wall clock of a simulation begins
DRAG = 1e-6  # seconds that a step takes: a clock that never moves hides what two readings of it should show
CLEARING = 100.0  # seconds of virtual time to clear away after a failure
ROUNDS = 3  # times that what is left is cancelled
LIMIT = 1_000_000  # steps; what needs more goes round in a circle
MAX_OFFLOAD = 0.02  # seconds of virtual time that a function takes on another thread


class SimulationError(AssertionError):
    """The simulated program hangs, goes round in a circle, or does what no simulation can repeat."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """Runs callbacks as asyncio does, one after another, on a clock of its own.

    `limit` is how many seconds of virtual time a run may take. Threads do not take part: what would run on one
    (`to_thread`, `run_in_executor`) runs on the loop, after a delay of the seed's.
    """

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _stopping: bool

    def __init__(self, seed: int = 0, *, shuffle: bool = False, limit: float = 3600.0) -> None:
        super().__init__()
        self.steps = 0
        self.failures: list[dict[str, Any]] = []  # what the exception handler was told
        self.traced: Callable[[float, str], None] | None = None  # told of every step: its time and its name
        self.network = Network(self, random.Random(f"{seed} network"))  # noqa: S311 - a simulation's, no secret
        self._chance = random.Random(f"{seed} loop")  # noqa: S311
        self._shuffle = shuffle
        self._now = 0.0
        self._ends = limit
        self._skew = 0.0
        self._watchers: list[Callable[[], None]] = []
        self._planned: dict[int, list[Callable[[], None]]] = {}
        self._numbers = itertools.count()
        self.set_exception_handler(lambda _, context: self.failures.append(context))
        self.set_task_factory(_numbered)

    def next_number(self) -> int:
        """The number of the next task or future."""
        return next(self._numbers)

    def create_future(self) -> asyncio.Future[Any]:
        """A future with a number."""
        return _Future(self)

    # The clock

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def wall(self) -> float:
        """Unix time of the simulation."""
        return EPOCH + self._now + self._skew

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an operator or a time server does; `time` goes on."""
        self._skew += seconds

    def block(self, seconds: float) -> None:
        """Let time pass with nobody running: what a handler does that blocks the loop."""
        self._now += max(0.0, seconds)

    # What tests put in

    def watch(self, check: Callable[[], None]) -> None:
        """Call `check` after every round of the loop; what it raises ends the run."""
        self._watchers.append(check)

    def at_step(self, number: int, action: Callable[[], None]) -> None:
        """Call `action` just before step `number` (from 1): the way to fail at every await of a run, one by one."""
        self._planned.setdefault(number, []).append(action)

    def clear_away(self) -> None:
        """After a failure: cancel what is left, see it off in peace, and leave what does not heed it."""
        self._watchers.clear()
        self._planned.clear()
        self.traced = None
        self.steps = 0
        self._ends = self._now + CLEARING
        for _ in range(ROUNDS):
            if not (left := asyncio.all_tasks(self)):
                return
            for task in left:
                task.cancel()
            with contextlib.suppress(Exception):
                self.run_until_complete(asyncio.wait(left, timeout=CLEARING / ROUNDS))

    # What asyncio asks of a loop

    def _run_once(self) -> None:
        self._let_timers_ring()
        if self._shuffle and len(self._ready) > 1:
            self._reorder()
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle.cancelled():
                self._step(handle)
        for check in self._watchers:
            check()

    def _step(self, handle: asyncio.Handle) -> None:
        self.steps += 1
        if self.steps > LIMIT:
            raise SimulationError(f"{LIMIT} steps are not enough: the program goes round in a circle")
        self._now += DRAG
        for action in self._planned.pop(self.steps, ()):
            action()
        if self.traced is not None:
            self.traced(self._now, name_of(handle))
        handle._run()  # noqa: SLF001 - as every loop does

    def _let_timers_ring(self) -> None:
        timers = self._scheduled
        while timers and timers[0].cancelled():
            heapq.heappop(timers)
        if not self._ready and not self._stopping:
            if not timers:
                raise SimulationError(f"nothing can happen any more, and these wait:\n{self._waiting()}")
            self._now = max(self._now, timers[0].when())
            if self._now > self._ends:
                raise SimulationError(f"not over after {self._ends:g} s of virtual time:\n{self._waiting()}")
        while timers and (timers[0].cancelled() or timers[0].when() <= self._now):
            timer = heapq.heappop(timers)
            if not timer.cancelled():
                self._ready.append(timer)

    def _reorder(self) -> None:
        """Put the steps of different tasks in another order; callbacks stay where they are, as asyncio promises."""
        places = [place for place, handle in enumerate(self._ready) if _task_of(handle) is not None]
        handles = [self._ready[place] for place in places]
        self._chance.shuffle(handles)
        for place, handle in zip(places, handles, strict=True):
            self._ready[place] = handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer is dropped when its time has come."""

    def _waiting(self) -> str:
        return "\n".join(
            f"  {task.get_name()}: {_place_of(task)}"
            for task in sorted(asyncio.all_tasks(self), key=lambda task: task.get_name())
        )

    def call_soon_threadsafe(  # type: ignore[override] # one signature for all that typeshed tells apart
        self, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        """`call_soon`. Raises `SimulationError` on any other thread: nobody can repeat when that one runs."""
        if threading.get_ident() != getattr(self, "_thread_id", None) and self.is_running():
            thread = threading.current_thread().name
            raise SimulationError(f"thread '{thread}' calls the loop: threads have no place in a simulation")
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(  # type: ignore[override] # as above
        self, _: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Run `func` on the loop, at a moment of the seed's, whatever executor is given."""
        outcome: asyncio.Future[T] = self.create_future()

        def run() -> None:
            if outcome.cancelled():
                return  # a pool would not have begun it either
            try:
                result = func(*args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits
                self.call_later(self._chance.uniform(0.0, MAX_OFFLOAD), _settle, outcome, None, error)
            else:
                self.call_later(self._chance.uniform(0.0, MAX_OFFLOAD), _settle, outcome, result, None)

        self.call_later(self._chance.uniform(0.0, MAX_OFFLOAD), run)
        return outcome

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There are no threads to end."""

    # The network

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> list[Any]:
        """Every name is known, and stands for itself."""
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (str(host), int(port or 0)))]

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Open a link of the simulated network; `sock` stands for it until `create_connection` is given it."""
        await self.network.dial(sock, tuple(address[:2]))

    async def create_connection(  # type: ignore[override] # as above
        self, protocol_factory: Callable[[], asyncio.Protocol], host: Any = None, port: Any = None, **options: Any
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Connect over the simulated network; TLS is not simulated."""
        if options.get("ssl"):
            raise SimulationError("TLS is not simulated: connect to an http address")
        if (sock := options.get("sock")) is not None:
            return self.network.opened(sock, protocol_factory)
        return await self.network.connect((str(host), int(port)), protocol_factory)

    async def create_unix_connection(  # type: ignore[override] # as above
        self, protocol_factory: Callable[[], asyncio.Protocol], path: Any = None, **_: Any
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Connect to a path of the simulated network."""
        return await self.network.connect(("unix", str(path)), protocol_factory)

    async def create_server(  # type: ignore[override] # as above
        self, protocol_factory: Callable[[], asyncio.Protocol], host: Any = None, port: Any = None, **options: Any
    ) -> Server:
        """Listen on the simulated network."""
        if (sock := options.get("sock")) is not None:
            host, port = sock.getsockname()[:2]
        hosts = [str(each) for each in host] if isinstance(host, Sequence) and not isinstance(host, str) else [host]
        addresses = [(str(each or "127.0.0.1"), int(port or 0)) for each in hosts]
        return self.network.listen(addresses, protocol_factory, sock)

    async def create_unix_server(  # type: ignore[override] # as above
        self, protocol_factory: Callable[[], asyncio.Protocol], path: Any = None, **_: Any
    ) -> Server:
        """Listen on a path of the simulated network."""
        return self.network.listen([("unix", str(path))], protocol_factory)


class _Future(asyncio.Future[Any]):
    """Hashed by its number: sets of futures, those of asyncio itself too, have one order in all runs."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._number = loop.next_number()
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class _Task(asyncio.Task[Any]):
    """Hashed by its number, as a future is."""

    def __init__(self, work: Any, loop: SimulatedLoop, **options: Any) -> None:
        self._number = loop.next_number()
        super().__init__(work, loop=loop, **options)

    def __hash__(self) -> int:
        return self._number


def _numbered(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    assert isinstance(loop, SimulatedLoop)
    return _Task(work, loop, **options)


def name_of(handle: asyncio.Handle) -> str:
    """What a step runs, the same in every process: a task by its name and its place, a callback by its name."""
    task = _task_of(handle)
    if task is None:
        callback = getattr(handle, "_callback", None)
        return str(getattr(callback, "__qualname__", None) or type(callback).__name__)
    name = task.get_name()
    if name.startswith("Task-"):  # numbered by the process, not by the run
        name = "task"
    return f"{name} {_place_of(task)}"


def _task_of(handle: asyncio.Handle) -> asyncio.Task[Any] | None:
    owner = getattr(getattr(handle, "_callback", None), "__self__", None)
    return owner if isinstance(owner, asyncio.Task) else None


def _place_of(task: asyncio.Task[Any]) -> str:
    """Where a task waits: the innermost line that can be seen."""
    work: Any = task.get_coro()
    names = []
    while work is not None:
        frame = getattr(work, "cr_frame", None) or getattr(work, "gi_frame", None) or getattr(work, "ag_frame", None)
        if frame is None:
            break
        names.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        work = getattr(work, "cr_await", None) or getattr(work, "gi_yieldfrom", None) or getattr(work, "ag_await", None)
    return " > ".join(names) or "ended"


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):
        future.set_exception(RuntimeError(f"a function on a thread raised {error!r}"))
    else:
        future.set_exception(error)
