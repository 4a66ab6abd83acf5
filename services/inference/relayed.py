"""Answers of models that other devices serve: found by their names, asked, accounted, and shown as processes here.

What is loaded or stored here goes before what is served elsewhere under the same name: whether a prompt leaves this
machine is not to depend on what happens to be loaded. `device/model` and `driver/model` name what is elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable

import msgspec

from microkernel.errors import (
    CallCancelled,
    Internal,
    Invalid,
    MicrokernelError,
    NotFound,
    Overloaded,
    PreconditionFailed,
    Unavailable,
    Unimplemented,
)
from microkernel.message import Message, convert, current_call, may_touch
from microkernel.model_server import Generate, Generated
from microkernel.service import Service
from microkernel.trace import Trace
from services.devices.messages import AskModel, DeviceState, ListServed, Served
from services.inference.answers import SLOW_READER, Wanted
from services.inference.messages import Chat, Complete, LoadedModel, Piece, Usage
from services.inference.relay import Relay
from services.scheduler.messages import Exit, Process, ProcessState, Progress, Report, Signal, Spawn

__all__ = ["Relayed", "Route", "requests_of"]

LET_GO = 0.25  # seconds that the end of an answer waits for its device; the rest goes on without it
REFUSED = {"pause": "paused", "resume": "resumed", "nice": "reniced"}
NICES = 100  # more than there are nice values


class Route(msgspec.Struct, frozen=True):
    """What a name means that nothing here has: `model` at `where`, "" for any device that serves it."""

    name: str
    model: str
    where: str
    devices: tuple[str, ...]


class Relayed:
    """The answers that are being relayed."""

    def __init__(self, service: Service, charge: Callable[[str, int], None]) -> None:
        """`charge` is told of the tokens that were computed for an owner, about twice a second and at the end."""
        self._service = service
        self._charge = charge
        self._running: list[_Answer] = []

    async def find(self, name: str) -> Route | None:
        """Where a name leads; None where no device serves it."""
        rows = await self._served(name)
        if not rows:
            return None
        model = rows[0].model
        where = name.removesuffix(model).rstrip("/") if name != model else ""
        return Route(name, model, where, tuple(row.device for row in rows))

    async def shown(self, taken: Iterable[str], *, default: str | None) -> list[LoadedModel]:
        """All models that are served, by the names that they are asked by; `taken` are names that mean others here."""
        names = set(taken)
        found: dict[str, list[Served]] = {}
        for row in await self._served(None):
            found.setdefault(f"{row.device}/{row.model}" if row.model in names else row.model, []).append(row)
        if default is not None and default not in names and default not in found:
            found |= {default: rows} if (rows := await self._served(default)) else {}
        return [_described(name, rows, default=name == default) for name, rows in found.items() if name not in names]

    def give(self, route: Route, wanted: Wanted, asks: list[Generate], owner: str) -> AsyncGenerator[Piece, None]:
        """The pieces of all answers."""
        urgency = wanted.process_class.rank * NICES + wanted.nice
        asked = [_at(ask, route.where, urgency) for ask in asks]
        call = current_call()
        return self._read(route, wanted, asked, owner, None if call is None else call.trace)

    def has(self, pid: int) -> bool:
        """Whether that process is one of these."""
        return any(answer.pid == pid for answer in self._running)

    def check_not(self, pid: int, what: str) -> None:
        """Raise `PreconditionFailed` where that process is one of these: its context is on another device."""
        for answer in self._running:
            if answer.pid == pid and may_touch(answer.entered.owner):
                device = answer.relay.device or "another device"
                raise PreconditionFailed(f"process {pid} cannot be {what}: {device} makes its answer")

    def signal(self, message: Signal) -> None:
        """End a process; nothing else can be asked of the devices. Raises `NotFound`."""
        answer = self._find(message.pid)
        if message.signal == "kill":
            answer.end(CallCancelled(f"process {message.pid}: {message.why}"))
        elif message.signal in REFUSED:
            self.check_not(message.pid, REFUSED[message.signal])
        else:
            raise Invalid(f"inference does not know the signal '{message.signal}'", field="signal")

    def why(self, pid: int) -> str:
        """What a process waits for, as the rest of a sentence about it. Raises `NotFound`."""
        relay = self._find(pid).relay
        if relay.admitted is None:
            return "waits for a place at a device that serves its model"
        if relay.held_since is not None:
            return "waits for its reader"
        return f"runs at {relay.device}: it has {relay.tokens} tokens of its answer"

    async def report(self) -> None:
        """Tell the scheduler what each answer has used so far, and cut readers that take nothing."""
        for answer in self._running:
            self._cut_if_slow(answer)
            self._count(answer)
        entries = tuple(answer.progress(ProcessState.RUNNING) for answer in self._running if answer.pid)
        if entries:
            await self._tell("scheduler.report", Report(entries))

    async def enter_again(self) -> None:
        """A scheduler that has come back has an empty table."""
        for answer in tuple(self._running):
            if answer.pid and answer in self._running:  # it may have ended meanwhile
                await self._tell("scheduler.spawn", msgspec.structs.replace(answer.entered, pid=answer.pid))

    async def _served(self, name: str | None) -> list[Served]:
        try:
            return convert(await self._service.call("devices.served", ListServed(name)), list[Served])
        except (NotFound, Unavailable):
            return []  # devices are away: what is here can be asked all the same

    async def _read(
        self, route: Route, wanted: Wanted, asks: list[AskModel], owner: str, trace: Trace | None
    ) -> AsyncGenerator[Piece, None]:
        news = asyncio.Event()
        answers: list[_Answer] = []
        why: dict[int, tuple[ProcessState, str]] = {}
        try:
            for index, ask in enumerate(asks):
                answers.append(await self._begin(route, wanted, owner, Relay(index, news, self._service.clock.now())))
                carry = self._carry(answers[-1], ask, trace)
                answers[-1].task = self._service.spawn(carry, name=f"relay {route.name}")
            begun: set[int] = set()
            open_ = list(answers)
            while open_:
                await news.wait()
                news.clear()
                for answer in tuple(open_):
                    relay = answer.relay
                    if relay.admitted is not None and relay.index not in begun:
                        begun.add(relay.index)
                        yield Piece(pid=answer.pid, model=route.name, index=relay.index)
                    if not relay.ready:
                        continue
                    piece = msgspec.structs.replace(relay.take(), pid=answer.pid, model=route.name)
                    if relay.finish_reason is not None:
                        open_.remove(answer)
                        why[relay.index] = ProcessState.DONE, relay.finish_reason
                        usage = _usage(relay, self._service.clock.now())
                        piece = msgspec.structs.replace(piece, finish_reason=relay.finish_reason, usage=usage)
                    yield piece
        except MicrokernelError as error:
            state = ProcessState.KILLED if isinstance(error, CallCancelled) else ProcessState.FAILED
            why = {answer.relay.index: (state, error.message) for answer in answers} | why
            raise
        finally:
            await self._end(answers, why)

    async def _begin(self, route: Route, wanted: Wanted, owner: str, relay: Relay) -> _Answer:
        """Enter one answer into the table."""
        spawn = Spawn(
            kind=wanted.kind,
            title=wanted.title,
            owner=owner,
            device=route.devices[0] if len(route.devices) == 1 else None,
            process_class=wanted.process_class,
            nice=wanted.nice,
            due=wanted.due,
        )
        answer = _Answer(await self._enter(spawn), relay, spawn)
        self._running.append(answer)
        return answer

    async def _end(self, answers: list[_Answer], why: dict[int, tuple[ProcessState, str]]) -> None:
        """Count what was computed, and end what has not ended; `why` says how each did, by its number."""
        for answer in answers:
            self._count(answer)
            self._running.remove(answer)
            if answer.relay.finish_reason is None:  # what has ended lets go of its connection by itself
                answer.end(CallCancelled("its reader left"))
        if tasks := [answer.task for answer in answers if answer.task is not None]:
            await asyncio.wait(tasks, timeout=LET_GO)
        for answer in answers:
            state, said = why.get(answer.relay.index, (ProcessState.KILLED, "its reader left"))
            if answer.pid:
                await self._tell("scheduler.exit", Exit(progress=answer.progress(state, said)))

    async def _carry(self, answer: _Answer, ask: AskModel, trace: Trace | None) -> None:
        """Bring the pieces of one answer, in a task of the service: a kill ends it whether or not its reader looks."""
        relay = answer.relay
        try:
            async with self._service.port.stream("devices.generate", ask, trace=trace) as items:
                async for item in items:
                    await relay.push(convert(item, Generated), self._service.clock.now())
            relay.fail(Internal("the answer broke off without a reason", service="devices"))
        except MicrokernelError as error:
            relay.fail(error)

    def _find(self, pid: int) -> _Answer:
        for answer in self._running:
            if answer.pid == pid and may_touch(answer.entered.owner):
                return answer
        raise NotFound(f"no answer runs as process {pid}", field="pid", remedy="see `mk ps`")

    def _count(self, answer: _Answer) -> None:
        """Charge its owner for what was computed since the last time; a device may tell less at the end than came."""
        computed = max(answer.relay.computed, answer.relay.charged)
        self._charge(answer.entered.owner, computed - answer.relay.charged)
        answer.relay.charged = computed

    def _cut_if_slow(self, answer: _Answer) -> None:
        since = answer.relay.held_since
        seconds = 0.0 if since is None else self._service.clock.now() - since
        if seconds > SLOW_READER:
            answer.end(Overloaded(f"slow reader: it took nothing for {seconds:.1f} s", service=self._service.name))

    async def _enter(self, spawn: Spawn) -> int:
        """The pid of a new process; 0 on a node without a scheduler, where nobody can show or kill it."""
        try:
            return convert(await self._service.call("scheduler.spawn", spawn), Process).pid
        except (NotFound, Unavailable):
            return 0

    async def _tell(self, to: str, message: Message) -> None:
        """What is only told must not end an answer: a scheduler that is away learns of it when it is back."""
        try:
            await self._service.call(to, message, deadline=1.0)
        except MicrokernelError as error:
            self._service.log.warning("could not tell %s: %s", to, error)


class _Answer:
    """An answer that is being relayed. `pid` is 0 on a node without a scheduler."""

    def __init__(self, pid: int, relay: Relay, entered: Spawn) -> None:
        self.pid = pid
        self.relay = relay
        self.entered = entered
        self.task: asyncio.Task[None] | None = None

    def end(self, error: MicrokernelError) -> None:
        """End it with `error`, and what the device does for it."""
        self.relay.fail(error)
        if self.task is not None:
            self.task.cancel()

    def progress(self, state: ProcessState, why: str = "") -> Progress:
        """What it has used so far."""
        relay = self.relay
        if state is ProcessState.RUNNING and relay.admitted is None:
            state, why = ProcessState.WAITING, "for a place at a device that serves its model"
        elif state is ProcessState.RUNNING and relay.held_since is not None:
            state, why = ProcessState.WAITING, "for its reader"
        return Progress(
            pid=self.pid,
            state=state,
            why=why,
            device=relay.device or None,
            tokens_in=relay.prompt_tokens,
            tokens_out=relay.tokens,
        )


def requests_of(message: Chat | Complete, route: Route) -> list[Generate]:
    """A request for each answer, with a seed of its own. Raises `Invalid` for messages that are none."""
    if isinstance(message, Chat) and not message.messages:
        raise Invalid("there are no messages", field="messages")
    if message.begun:
        raise Unimplemented("an answer of another device's model does not go on behind given tokens", field="begun")
    shared = {
        name: value for name, value in msgspec.structs.asdict(message).items() if name in Generate.__struct_fields__
    } | {"model": route.model, "return_token_ids": False}
    return [
        Generate(**shared | {"seed": None if message.seed is None else message.seed + place})
        for place in range(message.n)
    ]


def _at(ask: Generate, where: str, urgency: int) -> AskModel:
    return AskModel(**msgspec.structs.asdict(ask), where=where, urgency=urgency)


def _described(name: str, rows: list[Served], *, default: bool) -> LoadedModel:
    """A served model as loaded ones are shown; it is ready where one of its devices may be asked."""
    reachable = [row for row in rows if row.state is not DeviceState.QUARANTINED]
    lengths = [row.context_length for row in rows if row.context_length]
    return LoadedModel(
        name=name,
        state="ready" if reachable else "failed",
        why="" if reachable else "; ".join(f"{row.device}: {row.why}" for row in rows),
        context_length=min(lengths, default=0),
        device=", ".join(row.device for row in reachable or rows),
        created=max(row.created for row in rows),
        default=default,
    )


def _usage(relay: Relay, now: float) -> Usage | None:
    """What the device tells of an answer's cost; None where it does not."""
    spent = relay.spent
    if spent is None:
        return None
    return Usage(
        prompt_tokens=spent.prompt_tokens,
        completion_tokens=spent.completion_tokens,
        cached_tokens=spent.cached_tokens,
        queue_seconds=(relay.admitted or now) - relay.began,
        first_token_seconds=(relay.first_token or now) - relay.began,
        total_seconds=now - relay.began,
    )
