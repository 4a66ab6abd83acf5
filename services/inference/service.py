"""Answers chats and completions with the models that are loaded."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec

from microkernel.errors import (
    CallCancelled,
    Invalid,
    MicrokernelError,
    NotFound,
    Overloaded,
    PreconditionFailed,
    Unavailable,
)
from microkernel.events import Event
from microkernel.message import Message, convert, current_call
from microkernel.service import Service, every, handles, on, streams
from services.inference.generation import Generation
from services.inference.loaded import Loaded
from services.inference.loaded_models import LoadedModels
from services.inference.messages import (
    Chat,
    Complete,
    LoadedModel,
    LoadModel,
    Piece,
    UnloadModel,
    Usage,
)
from services.inference.settings import InferenceSettings
from services.inference.text.detokenizer import IncrementalText
from services.inference.text.stops import StopMatcher
from services.memory.messages import Pressure, Quotas
from services.scheduler.messages import Exit, Process, ProcessState, Progress, Report, Signal, Spawn

__all__ = ["Inference"]

TITLE = 40  # characters of the prompt that `ps` shows
SLOW_READER = 30.0  # seconds that a reader may take nothing while its sequence keeps a place in the batch
SLOW_READER_WHEN_WANTED = 5.0  # the same while others wait for a place


class _Answer(msgspec.Struct, frozen=True, gc=False):
    """An answer that is being given. `pid` is 0 on a node without a scheduler."""

    pid: int
    generation: Generation
    loaded: Loaded
    entered: Spawn

    def end(self, error: MicrokernelError) -> None:
        """End it with `error`; its place in the batch is free at once, whether or not its reader ever looks again."""
        self.generation.fail(error)
        self.loaded.runner.cancel(self.generation)

    def spawn(self, pid: int) -> Spawn:
        """The message that enters it again as process `pid`."""
        return msgspec.structs.replace(self.entered, pid=pid)


class Inference(Service):
    """Runs models: continuous batching, sampling, streaming."""

    name = "inference"
    needs = ("devices", "memory")
    uses = ("models", "scheduler")
    Settings = InferenceSettings
    essential = True

    async def start(self) -> None:
        self._numbers = itertools.count(1)
        self._answers: dict[int, _Answer] = {}
        self._models = LoadedModels(self, self.settings, self._numbers)

    async def ready(self) -> None:
        await self._models.load_default()

    async def stop(self) -> None:
        await self._models.close()

    @streams(credit=16)
    async def chat(self, message: Chat) -> AsyncIterator[Piece]:
        """The next turn of a conversation, piece by piece."""
        self._models.memory.check_open()
        loaded = await self._models.get(message.model)
        with loaded.asked():
            prompt = await loaded.encode_chat(message.messages)
            last = message.messages[-1].content if message.messages else ""
            answer = self._answer(loaded, prompt, message, kind="chat", title=_title(last), continues=False)
            async with aclosing(answer):
                async for piece in answer:
                    yield piece

    @streams(credit=16)
    async def complete(self, message: Complete) -> AsyncIterator[Piece]:
        """What follows a text, piece by piece."""
        self._models.memory.check_open()
        loaded = await self._models.get(message.model)
        with loaded.asked():
            prompt = message.prompt
            tokens = await loaded.encode_text(prompt) if isinstance(prompt, str) else prompt
            answer = self._answer(loaded, tokens, message, kind="complete", title=_title(prompt), continues=True)
            async with aclosing(answer):
                async for piece in answer:
                    yield piece

    @handles(deadline=None)
    async def load(self, message: LoadModel) -> LoadedModel:
        """Put a model on the device, pulling it first if it is not stored."""
        return self._models.describe(await self._models.load(message.ref))

    @handles
    async def unload(self, message: UnloadModel) -> None:
        """Take a model off the device; its answers end with `UNAVAILABLE`."""
        loaded = self._models.find(message.name)
        if loaded.name == self._models.default:
            raise PreconditionFailed(f"'{loaded.name}' is the default model", remedy="boot with another --model")
        await self._models.unload(loaded)

    @handles(name="list", idempotent=True)
    async def list_models(self) -> list[LoadedModel]:
        """All models that can be asked, the default one first: loaded, loading, or stored and loaded when asked."""
        return await self._models.shown()

    @handles
    async def signal(self, message: Signal) -> None:
        """The scheduler ends a process that is one of our answers."""
        if message.signal != "kill":
            raise Invalid(f"inference does not know the signal '{message.signal}'", field="signal")
        found = [answer for answer in self._answers.values() if answer.pid == message.pid]
        if not found:
            raise NotFound(f"no answer runs as process {message.pid}", field="pid")
        found[0].end(CallCancelled(f"process {message.pid}: {message.why}"))

    @every(0.5)
    async def report(self) -> None:
        """Tell the scheduler what each answer has used so far, and cut readers that take nothing."""
        for answer in self._answers.values():
            self._cut_if_slow(answer)
        if self._answers:
            entries = tuple(
                _progress(answer.pid, answer.generation, ProcessState.RUNNING) for answer in self._answers.values()
            )
            await self._tell_scheduler("scheduler.report", Report(entries))

    @every(0.5)
    async def account(self) -> None:
        """Tell memory what the models take, and do what it asks for where it is short."""
        await self._models.look_after_memory()

    @on("memory.quotas")
    async def keep_quotas(self, event: Event) -> None:
        """Quotas have changed: what runs keeps them from now on."""
        await self._models.memory.keep(convert(event.body, Quotas))

    @on("memory.pressure")
    async def feel_pressure(self, event: Event) -> None:
        """Memory is on another rung."""
        await self._models.memory.press(convert(event.body, Pressure))

    @on("service.scheduler.running")
    async def enter_again(self, _: Event) -> None:
        """A scheduler that has come back has an empty table."""
        for answer in tuple(self._answers.values()):
            if answer.pid:
                await self._tell_scheduler("scheduler.spawn", answer.spawn(answer.pid))

    # An answer

    async def _answer(
        self, loaded: Loaded, prompt: list[int], message: Chat | Complete, *, kind: str, title: str, continues: bool
    ) -> AsyncGenerator[Piece, None]:
        number = next(self._numbers)
        stops = StopMatcher(message.stop)
        call = current_call()
        owner = message.owner if call is None or call.user is None else call.user
        request = loaded.request(number, prompt, message, message.max_tokens, self.settings.sampling, owner=owner)
        generation = Generation(
            number,
            text=IncrementalText(loaded.tokenizer, continues=continues),
            stops=stops,
            prompt_tokens=len(prompt),
            began=self.clock.now(),
        )
        spawn = Spawn(kind=kind, title=title, owner=owner, device=self.settings.device)
        pid = await self._enter(spawn)
        self._answers[number] = _Answer(pid, generation, loaded, spawn)
        state, why = ProcessState.KILLED, "its reader left"
        try:
            loaded.runner.submit(request, generation)
            yield Piece(pid=pid, model=loaded.name)
            while text := await generation.read():
                if generation.finish_reason is None:
                    yield Piece(text=text, pid=pid, model=loaded.name)
                    continue
                break
            state, why = ProcessState.DONE, generation.finish_reason or ""
            yield Piece(
                text=text, pid=pid, model=loaded.name, finish_reason=why, usage=_usage(generation, self.clock.now())
            )
        except CallCancelled as error:
            state, why = ProcessState.KILLED, error.message
            raise
        except MicrokernelError as error:
            state, why = ProcessState.FAILED, error.message
            raise
        finally:
            loaded.runner.cancel(generation)
            del self._answers[number]
            if pid:
                await self._tell_scheduler("scheduler.exit", Exit(progress=_progress(pid, generation, state, why)))

    async def _enter(self, spawn: Spawn) -> int:
        """The pid of a new process; 0 on a node without a scheduler, where nobody can show or kill it."""
        try:
            return convert(await self.call("scheduler.spawn", spawn), Process).pid
        except (NotFound, Unavailable):
            return 0

    def _cut_if_slow(self, answer: _Answer) -> None:
        generation = answer.generation
        if generation.held_since is None:
            return
        seconds = self.clock.now() - generation.held_since
        wanted = answer.loaded.runner.waiting > 0
        if seconds > (SLOW_READER_WHEN_WANTED if wanted else SLOW_READER):
            answer.end(
                Overloaded(
                    f"slow reader: {generation.unread} tokens pending for {seconds:.1f} s"
                    + (", and others wait for the place" if wanted else ""),
                    service=self.name,
                )
            )

    async def _tell_scheduler(self, to: str, message: Message) -> None:
        """What is only told must not end an answer: a scheduler that is away learns of it when it is back."""
        try:
            await self.call(to, message, deadline=1.0)
        except MicrokernelError as error:
            self.log.warning("could not tell %s: %s", to, error)


def _title(content: str | list[Any] | None) -> str:
    text = " ".join(content.split()) if isinstance(content, str) else ""
    return text if len(text) <= TITLE else text[: TITLE - 1] + "…"


def _progress(pid: int, generation: Generation, state: ProcessState, why: str = "") -> Progress:
    if state is ProcessState.RUNNING and generation.joined is None:
        state, why = ProcessState.WAITING, "for a place in the batch"
    elif state is ProcessState.RUNNING and generation.held_since is not None:
        state, why = ProcessState.WAITING, "for its reader"
    return Progress(
        pid=pid,
        state=state,
        why=why,
        tokens_in=generation.prompt_tokens,
        tokens_out=generation.tokens,
        device_seconds=generation.device_seconds,
    )


def _usage(generation: Generation, now: float) -> Usage:
    return Usage(
        prompt_tokens=generation.prompt_tokens,
        completion_tokens=generation.tokens,
        queue_seconds=max(0.0, (generation.joined or now) - generation.began),
        first_token_seconds=(generation.first_token or now) - generation.began,
        total_seconds=now - generation.began,
    )
