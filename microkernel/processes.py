"""A service's own work as processes: shown, explained, paused, made nicer and ended like all other work of the node.

The table of processes is the scheduler's, a service. On a node without it the work is done all the same, and nobody
sees it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, suppress
from types import GeneratorType
from typing import Any, ClassVar, TypeVar

import msgspec

from microkernel.errors import (
    CallCancelled,
    Invalid,
    MicrokernelError,
    NotFound,
    Unavailable,
)
from microkernel.events import Event
from microkernel.executor import Executor
from microkernel.message import Message, calling_user, is_root, may_touch
from microkernel.policy import Claim, ProcessClass
from microkernel.service import Service, every, handles, on

__all__ = ["LEAST_NICE", "NICEST", "OwnProcess", "ProcessService", "ProcessSignal", "WhyProcess", "checked_nice"]

SCHEDULER = "scheduler"
LEAST_NICE, NICEST = -20, 19
T = TypeVar("T")


def checked_nice(nice: int, *, least: int = 0) -> int:
    """A nice value that the user of the running call may give: root and this node any, others none below `least`.

    Raises `Invalid`.
    """
    least = LEAST_NICE if is_root() else least
    if not least <= nice <= NICEST:
        raise Invalid(f"nice is {nice}, allowed is {least} to {NICEST}", field="nice")
    return nice


class ProcessSignal(Message, kw_only=True):
    """What the scheduler wants of a process: kill, pause, resume or nice."""

    pid: int
    signal: str
    why: str = ""
    nice: int = 0


class WhyProcess(Message):
    """Ask why a process waits."""

    pid: int


class OwnProcess:
    """A piece of a service's work, from the begin of its block to its end."""

    def __init__(self, service: Service, fields: dict[str, Any], claim: Claim) -> None:
        self.pid = 0  # without a scheduler
        self.claim = claim
        self.seconds = 0.0  # that it had of devices
        self.paused = False
        self.killed: str | None = None  # why
        self.fields = fields
        self._service = service
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self._limit: asyncio.Timeout | None = None
        self._waits_for: Executor | None = None
        self._interrupted = False

    async def run(
        self,
        device: str,
        function: Callable[..., Generator[Any, None, T]] | Callable[..., T],
        /,
        *arguments: Any,
        one_core: bool = False,
    ) -> T:
        """`Executor.run` with the turns of this process. A generator function rests, or is ended, where it yields."""
        executor = self._service.executor(device)
        work = _Work(function, arguments)
        try:
            while True:
                await self._goes_on.wait()
                self._interrupted, self._waits_for = False, executor
                claim = self._claim_now()
                ended: bool = await executor.run(self._turns, work, claim=claim, one_core=one_core)
                if ended:
                    return work.result  # type: ignore[no-any-return] # what `function` returned
        finally:
            self._waits_for = None
            if work.rests:  # what is at a turn, the executor ends after it, and nobody waits for that
                with suppress(MicrokernelError):
                    await executor.finish(work.end)

    def kill(self, why: str) -> None:
        """End its block, and what it runs; nothing where that has begun."""
        if self.killed is not None:
            return
        self.killed = why
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time())

    def pause(self) -> None:
        """Let it rest from the end of its quantum on."""
        self.paused = self._interrupted = True
        self._goes_on.clear()

    def resume(self) -> None:
        """Let it go on."""
        self.paused = False
        self._goes_on.set()

    def renice(self, nice: int) -> None:
        """Have its next quantum earlier or later."""
        self.claim = msgspec.structs.replace(self.claim, nice=nice)
        self._interrupted = True

    def why(self) -> str:
        """What it waits for, or that it runs: the rest of a sentence about it."""
        if self.paused:
            return "is paused, until it is resumed"
        executor = self._waits_for
        return "runs, on no device" if executor is None else executor.why(self.pid) or "runs"

    @asynccontextmanager
    async def block(self) -> AsyncIterator[OwnProcess]:
        """From its begin to its end; raises `CallCancelled` where it is killed."""
        try:
            async with asyncio.timeout(None) as self._limit:
                yield self
        except TimeoutError:
            if self.killed is None:
                raise  # something else's
            raise CallCancelled(f"process {self.pid}: {self.killed}") from None
        finally:
            self._limit = None

    def _turns(self, work: _Work) -> Generator[None, None, bool]:
        """Quantum by quantum on a compute thread, until it ends (True), or is to rest or to have another turn."""
        work.rests = False
        try:
            while not self._interrupted:
                began = time.perf_counter()
                ended = work.turn()
                self.seconds += time.perf_counter() - began
                if ended:
                    return True
                yield
        except GeneratorExit:
            work.end()
            raise
        work.rests = True
        return False

    def _claim_now(self) -> Claim:
        return msgspec.structs.replace(self.claim, since=self._service.clock.now())


class _Work:
    """A function that runs, or one that runs quantum by quantum."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.result: Any = None
        self.rests = False  # between two turns
        self._function = function
        self._arguments = arguments
        self._quanta: GeneratorType[Any, None, Any] | None = None

    def turn(self) -> bool:
        """The next quantum; whether it was the last."""
        if self._quanta is None:
            result = self._function(*self._arguments)
            if type(result) is not GeneratorType:
                self.result = result
                return True
            self._quanta = result
        try:
            next(self._quanta)
        except StopIteration as last:
            self.result = last.value
            return True
        return False

    def end(self) -> None:
        """Have it clean up, where it has begun."""
        if self._quanta is not None:
            with suppress(ValueError):  # it has a turn again on another thread, which ends it
                self._quanta.close()


class ProcessService(Service):
    """A service whose work is processes: subclass it in the place of `Service`, with "scheduler" among its `uses`."""

    uses: ClassVar[tuple[str, ...] | list[str]] = (SCHEDULER,)

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse what could not enter its processes."""
        super().__init_subclass__(**options)
        if SCHEDULER not in (*cls.uses, *cls.needs) and "*" not in cls.uses:
            raise Invalid(f"{cls.__name__} has processes and does not use the scheduler", remedy="add it to `uses`")

    @asynccontextmanager
    async def process(
        self,
        title: str,
        *,
        kind: str = "job",
        process_class: ProcessClass = ProcessClass.BATCH,
        nice: int = 0,
        due: float | None = None,
        parent: int | None = None,
        owner: str | None = None,
    ) -> AsyncIterator[OwnProcess]:
        """A process as long as the block, of `owner`, or else of the user of the running call.

        It should have ended in `due` seconds. Raises `CallCancelled` where it is killed, and `Overloaded` where the
        table is full.
        """
        owner, now = owner or calling_user() or "local", self.clock.now()
        fields = {
            "kind": kind,
            "title": title,
            "owner": owner,
            "process_class": process_class,
            "nice": nice,
            "due": due,
            "parent": parent,
        }
        deadline = None if due is None else now + due
        claim = Claim(owner=owner, process_class=process_class, nice=nice, came=now, since=now, deadline=deadline)
        process = OwnProcess(self, fields, claim)
        await self._enter(process)
        self._processes().append(process)
        state, why = "failed", ""
        try:
            async with process.block():
                yield process
            state = "done"
        except CallCancelled as error:
            state, why = "killed", error.message
            raise
        except Exception as error:
            why = str(error)
            raise
        except asyncio.CancelledError:
            state, why = "killed", "whoever asked for it left"
            raise
        finally:
            self._processes().remove(process)
            await self._tell("exit", progress=_progress(process, state, why))

    @handles(name="signal")
    async def signal_process(self, message: ProcessSignal) -> None:
        """The scheduler ends, pauses, resumes or renices a process of this service."""
        process = self._process(message.pid)
        match message.signal:
            case "kill":
                process.kill(message.why)
            case "pause":
                process.pause()
            case "resume":
                process.resume()
            case "nice":
                process.fields["nice"] = checked_nice(message.nice, least=process.claim.nice)
                process.renice(message.nice)
            case other:
                raise Invalid(f"{self.name} does not know the signal '{other}'", field="signal")
        await self.report_processes()

    @handles(name="why", idempotent=True)
    async def why_process(self, message: WhyProcess) -> str:
        """What a process of this service waits for, as the rest of a sentence about it."""
        return self._process(message.pid).why()

    @every(0.5)
    async def report_processes(self) -> None:
        """Tell the scheduler what each process has used so far."""
        entries = [_progress(each, "paused" if each.paused else "running") for each in self._processes()]
        if entries:
            await self._tell("report", entries=entries)

    @on("service.scheduler.running")
    async def enter_processes_again(self, _: Event) -> None:
        """A scheduler that has come back has an empty table."""
        for process in tuple(self._processes()):
            if process.pid and process in self._processes():  # it may have ended meanwhile
                await self._tell("spawn", **process.fields, pid=process.pid)

    def _processes(self) -> list[OwnProcess]:
        """Those that run; made when the first does, so that a subclass need not ask for it in its `start`."""
        found: list[OwnProcess] = self.__dict__.setdefault("_own_processes", [])
        return found

    def _process(self, pid: int) -> OwnProcess:
        process = next((each for each in self._processes() if each.pid == pid), None)
        if process is None or not may_touch(process.claim.owner):
            raise NotFound(f"{self.name} has no process {pid}", remedy="see `mk ps`")
        return process

    async def _enter(self, process: OwnProcess) -> None:
        try:
            entered = await self.call(f"{SCHEDULER}.spawn", **process.fields)
        except (NotFound, Unavailable):
            return
        process.pid = entered.pid
        process.claim = msgspec.structs.replace(process.claim, pid=entered.pid)

    async def _tell(self, what: str, **fields: Any) -> None:
        try:
            await self.call(f"{SCHEDULER}.{what}", **fields)
        except (NotFound, Unavailable):
            pass  # there is no table, or not now: it is told all again when it comes back
        except MicrokernelError as error:
            self.log.warning("the scheduler was not told of processes: %s", error)


def _progress(process: OwnProcess, state: str, why: str = "") -> dict[str, Any]:
    return {"pid": process.pid, "state": state, "why": why, "device_seconds": process.seconds}
