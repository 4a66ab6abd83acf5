"""Makes vectors of texts: each request is a process, computed by small quanta that give way to chats."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec

from microkernel.buffers import Array
from microkernel.errors import CallCancelled, Invalid, MicrokernelError, NotFound, Unavailable
from microkernel.message import Message, convert, may_touch
from microkernel.policy import Claim
from microkernel.processes import OwnProcess, checked_nice
from microkernel.service import Service
from services.inference.encoder.loading import LoadedEncoders
from services.inference.messages import LONGEST_TEXT, MOST_CHARACTERS, MOST_TEXTS, Embed, Embeddings
from services.scheduler.messages import Exit, Process, ProcessState, Progress, Report, Signal, Spawn

__all__ = ["Embedding", "check_texts"]


class Embedding:
    """What runs, by the numbers of its processes."""

    def __init__(self, service: Service, encoders: LoadedEncoders, charge: Callable[[str, int], None]) -> None:
        """`charge` is told of the tokens that were computed for an owner."""
        self._service = service
        self._encoders = encoders
        self._charge = charge
        self._running: list[_Work] = []

    async def embed(self, message: Embed, owner: str) -> Embeddings:
        """The vectors of `message`'s texts. Raises `NotFound`, `Invalid`, and `CallCancelled` where it is killed."""
        encoder = await self._encoders.get(message.model or None)
        self._encoders.check_open(encoder)
        if message.dimensions not in {None, encoder.config.hidden_size}:
            raise Invalid(
                f"vectors of '{encoder.name}' have {encoder.config.hidden_size} dimensions, not {message.dimensions}",
                remedy="leave dimensions out",
                field="dimensions",
            )
        spawn = Spawn(
            kind="embed",
            title=_title(message.texts),
            owner=owner,
            device=encoder.device,
            process_class=message.process_class,
            nice=checked_nice(message.nice),
            due=message.due,
        )
        with encoder.asked():
            async with self._process(spawn) as work:
                tokenized = await encoder.tokenize(message.texts)
                work.tokens = tokenized.count
                vectors: Array = await work.process.run(encoder.device, encoder.vectors, tokenized.ids)
                self._charge(owner, tokenized.count)
        return Embeddings(
            vectors=vectors,
            model=encoder.name,
            dimensions=encoder.config.hidden_size,
            tokens=tokenized.count,
            truncated=tokenized.truncated,
        )

    def has(self, pid: int) -> bool:
        """Whether that process is one of these."""
        return any(work.process.pid == pid for work in self._running)

    async def signal(self, message: Signal) -> None:
        """End, pause, resume or renice a process. Raises `NotFound`."""
        process = self._find(message.pid)
        match message.signal:
            case "kill":
                process.kill(message.why)
            case "pause":
                process.pause()
            case "resume":
                process.resume()
            case "nice":
                process.renice(checked_nice(message.nice, least=process.claim.nice))
            case other:
                raise Invalid(f"inference does not know the signal '{other}'", field="signal")
        await self.report()

    def why(self, pid: int) -> str:
        """What a process waits for, as the rest of a sentence about it. Raises `NotFound`."""
        return self._find(pid).why()

    async def report(self) -> None:
        """Tell the scheduler what each process has used so far."""
        entries = tuple(work.progress(ProcessState.RUNNING) for work in self._running if work.process.pid)
        if entries:
            await self._tell("scheduler.report", Report(entries))

    async def enter_again(self) -> None:
        """A scheduler that has come back has an empty table."""
        for work in tuple(self._running):
            if work.process.pid and work in self._running:  # it may have ended meanwhile
                await self._tell("scheduler.spawn", msgspec.structs.replace(work.entered, pid=work.process.pid))

    @asynccontextmanager
    async def _process(self, spawn: Spawn) -> AsyncIterator[_Work]:
        now = self._service.clock.now()
        claim = Claim(
            pid=await self._enter(spawn),
            owner=spawn.owner,
            process_class=spawn.process_class,
            nice=spawn.nice,
            came=now,
            since=now,
            deadline=None if spawn.due is None else now + spawn.due,
        )
        work = _Work(OwnProcess(self._service, {}, claim), spawn)
        work.process.pid = claim.pid
        self._running.append(work)
        state, why = ProcessState.KILLED, "whoever asked for it left"
        try:
            async with work.process.block():
                yield work
            state, why = ProcessState.DONE, ""
        except CallCancelled as error:
            why = error.message
            raise
        except Exception as error:
            state, why = ProcessState.FAILED, str(error)
            raise
        finally:
            self._running.remove(work)
            if claim.pid:
                await self._tell("scheduler.exit", Exit(progress=work.progress(state, why)))

    def _find(self, pid: int) -> OwnProcess:
        for work in self._running:
            if work.process.pid == pid and may_touch(work.entered.owner):
                return work.process
        raise NotFound(f"no texts are embedded as process {pid}", field="pid", remedy="see `mk ps`")

    async def _enter(self, spawn: Spawn) -> int:
        """The pid of a new process; 0 on a node without a scheduler, where nobody can show or kill it."""
        try:
            return convert(await self._service.call("scheduler.spawn", spawn), Process).pid
        except (NotFound, Unavailable):
            return 0

    async def _tell(self, to: str, message: Message) -> None:
        """What is only told must not end the work: a scheduler that is away learns of it when it is back."""
        try:
            await self._service.call(to, message, deadline=1.0)
        except MicrokernelError as error:
            self._service.log.warning("could not tell %s: %s", to, error)


class _Work:
    """A request at work."""

    def __init__(self, process: OwnProcess, entered: Spawn) -> None:
        self.process = process
        self.entered = entered
        self.tokens = 0

    def progress(self, state: ProcessState, why: str = "") -> Progress:
        """What it has used so far."""
        if state is ProcessState.RUNNING and self.process.paused:
            state, why = ProcessState.PAUSED, "until it is resumed"
        return Progress(
            pid=self.process.pid,
            state=state,
            why=why,
            tokens_in=self.tokens,
            device_seconds=self.process.seconds,
        )


def check_texts(texts: Sequence[str]) -> None:
    """Raise `Invalid` where there are none or too many, or they are too long."""
    if not 1 <= len(texts) <= MOST_TEXTS:
        raise Invalid(f"there are {len(texts)} texts, allowed are 1 to {MOST_TEXTS}", field="texts")
    for place, text in enumerate(texts):
        if len(text) > LONGEST_TEXT:
            raise Invalid(
                f"text {place} has {len(text)} characters, allowed are {LONGEST_TEXT}",
                remedy="cut it into parts: of a long text only the begin counts",
                field=f"texts[{place}]",
            )
    if (total := sum(map(len, texts))) > MOST_CHARACTERS:
        raise Invalid(f"the texts have {total} characters, allowed are {MOST_CHARACTERS}", field="texts")


def _title(texts: Sequence[str]) -> str:
    return "one text" if len(texts) == 1 else f"{len(texts)} texts"
