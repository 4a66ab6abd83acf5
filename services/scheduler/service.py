"""Owns the processes: who runs what for whom, whose turn is next, and how to end it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from microkernel.errors import Denied, Invalid, MicrokernelError, NotFound
from microkernel.events import Event
from microkernel.inputs import Inputs
from microkernel.message import Message, calling_node, calling_service, calling_user, convert, is_root, may_touch
from microkernel.policy import Policy, ProcessClass
from microkernel.portable import (
    AHEAD,
    EntryPiece,
    Export,
    Import,
    Imported,
    check_restoring,
    from_thread,
    only_root,
    take_in_files,
)
from microkernel.processes import LEAST_NICE, NICEST
from microkernel.service import Placement, Service, every, handles, on, streams
from services.devices.messages import Device
from services.scheduler.map_jobs import MapJobs
from services.scheduler.mapping.journals import ImportedJournals, exported
from services.scheduler.messages import (
    Exit,
    Explain,
    Kill,
    ListProcesses,
    Map,
    Mapped,
    Pause,
    PolicyStatus,
    Process,
    Report,
    Resume,
    RunElsewhere,
    SetNice,
    SetPolicy,
    SetWeight,
    Share,
    Signal,
    Spawn,
    Why,
)
from services.scheduler.policies.fair import Fair
from services.scheduler.policies.registry import Policies
from services.scheduler.table import ProcessTable

__all__ = ["Scheduler"]

SIGNAL_DEADLINE = 5.0  # seconds for a service to take a signal


class SchedulerSettings(Message):
    """How many processes may run at once, how many ended ones are remembered, and whose turn is next.

    `policy` is `fair`, `priority`, `fifo`, `deadline` or a plugin's; `weights` are owners' shares under `fair`, 1 for
    who has none; `aging` is how many nice values a second of waiting is worth under `priority`. `functions` are
    patterns of those that users other than root may map, such as "examples.squares:*".
    """

    limit: int = 4096
    history: int = 256
    policy: str = "fair"
    weights: dict[str, float] = {}
    aging: float = 1.0
    functions: tuple[str, ...] = ()


class Scheduler(Service):
    """The process table: every generation is a process with an owner, a state, costs, and a reason why it waits.

    The devices' queues are the executors'; the policy in each of them is the one that is set here.
    """

    name = "scheduler"
    placement = Placement.NODE
    uses = ("*",)  # a signal goes to whichever service runs the process
    Settings = SchedulerSettings

    async def start(self) -> None:
        self._table = ProcessTable(limit=self.settings.limit, history=self.settings.history)
        self._weights = {owner: _weight(weight) for owner, weight in self.settings.weights.items()}
        if not self.settings.aging > 0.0:
            raise Invalid(f"aging is {self.settings.aging}, and more than 0 is needed", field="aging")
        self._policies = Policies(self._weights, aging=self.settings.aging)
        await asyncio.to_thread(self._policies.discover)
        for name, why in self._policies.broken.items():
            self.log.error("policy '%s' is broken: %s", name, why)
        self._maps = MapJobs(self, self._table, self.settings.functions)
        self._policy = self.settings.policy
        self._policies.make(self._policy)  # raises for a name that is none
        for device in self._devices():
            self._install(device)

    @handles(name="spawn")
    async def spawn_process(self, message: Spawn) -> Process:
        """Enter a piece of work; the service that runs it reports on it and says when it ends."""
        process = self._table.spawn(message, calling_service(), self.clock.now())
        self.publish("process.spawned", process)
        return process

    @handles
    async def report(self, message: Report) -> None:
        """Progress of many processes at once."""
        now, service = self.clock.now(), calling_service()
        for progress in message.entries:
            self._table.update(progress, now, service=service)

    @handles
    async def exit(self, message: Exit) -> None:
        """A process has ended."""
        process = self._table.update(message.progress, self.clock.now(), service=calling_service())
        if process is not None:
            self.publish("process.ended", process)

    @handles(name="list", idempotent=True)
    async def list_processes(self, message: ListProcesses) -> list[Process]:
        """What runs, oldest first and then the tasks of maps; users other than root see their own."""
        now = self.clock.now()
        processes = self._table.show(now, ended=message.ended) + self._maps.tasks(now)
        return [process for process in processes if may_touch(process.owner)]

    @handles
    async def kill(self, message: Kill) -> Process:
        """End a process; returns it as it was."""
        process = self._find(message.pid)
        await self._signal(process, Signal(pid=process.pid, signal="kill", why=message.why))
        self.log.info("process %d (%s) was killed: %s", process.pid, process.title, message.why)
        return process

    @handles
    async def pause(self, message: Pause) -> Process:
        """Let a process rest, between two quanta; returns it as it was."""
        process = self._find(message.pid)
        await self._signal(process, Signal(pid=process.pid, signal="pause", why="paused by its user"))
        return process

    @handles
    async def resume(self, message: Resume) -> Process:
        """Let a process that rests go on; returns it as it was."""
        process = self._find(message.pid)
        await self._signal(process, Signal(pid=process.pid, signal="resume", why="resumed by its user"))
        return process

    @handles
    async def nice(self, message: SetNice) -> Process:
        """Have a process go before others of its class or behind them; returns it as it is then."""
        process = self._find(message.pid)
        if not LEAST_NICE <= message.nice <= NICEST:
            raise Invalid(f"nice is {message.nice}, allowed is {LEAST_NICE} to {NICEST}", field="nice")
        if message.nice < process.nice and not is_root():
            raise Denied(f"only root makes a process less nice, from {process.nice} to {message.nice}")
        why = f"nice {message.nice}"
        await self._signal(process, Signal(pid=process.pid, signal="nice", why=why, nice=message.nice))
        return self._table.renice(process.pid, message.nice, self.clock.now())

    @handles(idempotent=True)
    async def why(self, message: Why) -> str:
        """Why a process waits, in a sentence, as the service that runs it knows it at this moment."""
        process = self._find(message.pid)
        if process.service == self.name:
            told = self._maps.why(process.pid)
        else:
            told = await self.call(f"{process.service}.why", Explain(process.pid), deadline=SIGNAL_DEADLINE)
        return f"process {process.pid} ({process.kind} of {process.owner}) {told}"

    @handles(name="policy", idempotent=True)
    async def show_policy(self) -> PolicyStatus:
        """Whose turn is next: by which policy, and what owners had; users other than root see their own."""
        shares = [
            Share(device=device, owner=owner, process_class=process_class, seconds=seconds)
            for device in self._devices()
            for (process_class, owner), seconds in self.executor(device).look(_used).items()
        ]
        return PolicyStatus(
            name=self._policy,
            policies=self._policies.names(),
            weights=dict(self._weights),
            shares=[share for share in shares if is_root() or share.owner == calling_user()],
        )

    @handles
    async def set_policy(self, message: SetPolicy) -> PolicyStatus:
        """Have another policy from the next quantum on, on all devices. Nothing that waits is lost."""
        self._only_root("sets the policy")
        self._policies.make(message.name)
        before, self._policy = self._policy, message.name
        for device in self._devices():
            self._install(device)
        self.log.info("policy %s, before it was %s", message.name, before)
        self.publish("scheduler.policy", name=message.name, before=before)
        return await self.show_policy()

    @handles
    async def set_weight(self, message: SetWeight) -> PolicyStatus:
        """Set an owner's share under `fair`, from its next quantum on."""
        self._only_root("sets weights")
        if message.weight is None:
            self._weights.pop(message.owner, None)
        else:
            self._weights[message.owner] = _weight(message.weight)
        return await self.show_policy()

    @handles(name="map", deadline=None)
    async def map_items(self, message: Map) -> Any:
        """Call a function with each item: all values in order, or their reduction."""
        owner = calling_user() or message.owner
        return await self._maps.value(message, owner=owner, is_root=is_root())

    @streams(credit=16)
    async def imap(self, message: Map) -> AsyncIterator[Mapped]:
        """Call a function with each item: the values of each task, as its reader takes them."""
        owner = calling_user() or message.owner
        async with aclosing(self._maps.results(message, owner=owner, is_root=is_root())) as results:
            async for piece in results:
                yield piece

    @handles(deadline=None, concurrency=1024)
    async def run_tasks(self, message: RunElsewhere) -> bytes:
        """Do some tasks of a map of another node, which has looked at who may do that."""
        calling_node()
        return await self._maps.do_for_another(message)

    @streams
    async def export(self, message: Export) -> AsyncIterator[EntryPiece]:  # noqa: ARG002
        """What is done of named maps."""
        only_root("exports what maps have done")
        pieces = from_thread(exported(self.state_dir))
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    @streams(name="import", credit=AHEAD)
    async def take_in(self, message: Import, inputs: Inputs[EntryPiece]) -> AsyncIterator[Imported]:  # noqa: ARG002
        """Have named maps of another node go on here."""
        check_restoring(self)
        await take_in_files(inputs, ImportedJournals(self.state_dir), self.name)
        yield Imported()

    @every(0.5)
    async def follow(self) -> None:
        """Enter into the table how far maps are."""
        self._maps.report()

    @on("devices.found")
    async def schedule(self, event: Event) -> None:
        """A device has come: its queue goes by the policy from now on, where it runs work of ours."""
        device = convert(event.body, Device)
        if not device.answers:
            self._install(device.name)

    @on("service.*.*")
    async def bury(self, event: Event) -> None:
        """A service that is gone runs nothing any more."""
        if event.body["state"] in {"restarting", "stopped", "quarantined"}:
            self._maps.service_gone(event.body["name"])
            why = f"service '{event.body['name']}' is {event.body['state']}"
            for process in self._table.fail_service(event.body["name"], why, self.clock.now()):
                self.publish("process.ended", process)

    def _find(self, pid: int) -> Process:
        """The process, if the caller may touch it. Raises `NotFound`."""
        now = self.clock.now()
        process = self._maps.task(pid, now) or self._table.running(pid, now)
        if not may_touch(process.owner):
            raise NotFound(f"there is no process {pid}", remedy="see `mk ps`")
        return process

    async def _signal(self, process: Process, signal: Signal) -> None:
        if process.service == self.name:
            await self._maps.signal(signal)
        else:
            await self.call(f"{process.service}.signal", signal, deadline=SIGNAL_DEADLINE)

    def _devices(self) -> list[str]:
        return [executor.name for executor in self.executors]

    def _install(self, device: str) -> None:
        try:
            self.executor(device).schedule_by(self._policies.make(self._policy))
        except MicrokernelError as error:
            self.log.warning("%s is not scheduled: %s", device, error)

    @staticmethod
    def _only_root(does: str) -> None:
        if not is_root():
            raise Denied(f"only root {does}")


def _used(policy: Policy) -> dict[tuple[ProcessClass, str], float]:
    """What owners had, where the policy counts it."""
    return policy.used() if isinstance(policy, Fair) else {}


def _weight(weight: float) -> float:
    if not (math.isfinite(weight) and weight > 0.0):
        raise Invalid(f"a weight is more than 0, not {weight}", field="weight")
    return weight
