"""Answers chats and completions, and makes vectors of texts, with the models that are loaded."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec

from microkernel.balance import Balance
from microkernel.errors import CallCancelled, Denied, Invalid, PreconditionFailed, Unimplemented
from microkernel.events import Event
from microkernel.message import calling_user, convert, is_root
from microkernel.processes import checked_nice
from microkernel.service import Placement, Service, every, handles, on, streams
from services.devices.messages import Tuning
from services.inference.admission import Admission
from services.inference.answers import Answers, Wanted
from services.inference.context_files import ContextFiles
from services.inference.continued import continued
from services.inference.elsewhere import with_others
from services.inference.embedding import Embedding, check_texts
from services.inference.encoder.loading import AT_ONCE
from services.inference.engine.context import Context
from services.inference.engine.engine import Request
from services.inference.loaded_adapters import Asked
from services.inference.loaded_models import LoadedModels
from services.inference.messages import (
    MOST_ANSWERS,
    Chat,
    Complete,
    Embed,
    Embeddings,
    ForgetContext,
    ListModels,
    LoadAdapter,
    LoadedModel,
    LoadModel,
    PauseProcess,
    Piece,
    RestoreContext,
    ResumeProcess,
    SaveContext,
    SavedContext,
    TuneModel,
    UnloadAdapter,
    UnloadModel,
)
from services.inference.relayed import Relayed, Route, requests_of
from services.inference.settings import InferenceSettings
from services.inference.tuner import Tuner
from services.memory.messages import Pressure, Quotas
from services.scheduler.messages import Explain, Signal

__all__ = ["Inference"]

TITLE = 40  # characters of the prompt that `ps` shows


class Inference(Service):
    """Runs models: continuous batching, sampling, streaming."""

    name = "inference"
    needs = ("devices", "memory")
    uses = ("filesystem", "models", "scheduler")
    Settings = InferenceSettings
    essential = True
    placement = Placement.NODE
    balance = Balance.PREFIX
    balance_field = "messages"

    async def start(self) -> None:
        self._numbers = itertools.count(1)
        self._answers = Answers(self, self._numbers, self._charge)
        self._models = LoadedModels(self, self.settings, self._numbers)
        self._embedding = Embedding(self, self._models.encoders, self._charge)
        self._tuner = Tuner(self, self.settings, self._models)
        self._admission = Admission(self.settings.rates)
        self._relayed = Relayed(self, self._charge)
        self._contexts = ContextFiles(self, self.settings.contexts_bytes)

    async def ready(self) -> None:
        ref = self.settings.model
        if "/" in ref and (route := await self._relayed.find(ref)) is not None:
            self._models.answer_elsewhere(route.name)
            return
        await self._models.load_default()

    async def stop(self) -> None:
        await self._models.close()

    @streams(credit=16, anywhere=True, where="model", continues=continued)
    async def chat(self, message: Chat) -> AsyncIterator[Piece]:
        """The next turn of a conversation, piece by piece."""
        if (route := await self._elsewhere(message.model)) is not None:
            last = message.messages[-1].content if message.messages else ""
            wanted = _wanted(message, kind="chat", title=_title(last), continues=False)
            async with aclosing(self._relay(route, message, wanted)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        if message.tools:
            raise Unimplemented("tools are not supported yet by the models of this node", field="tools")
        asked = await self._models.asked(message.model)
        self._models.places.check_open(asked.loaded.device)
        with asked.stays():
            prompt = await asked.loaded.encode_chat(message.messages)
            last = message.messages[-1].content if message.messages else ""
            wanted = _wanted(message, kind="chat", title=_title(last), continues=False)
            requests = await self._requests(asked, prompt, message)
            async with aclosing(self._answers.give(asked, wanted, requests)) as pieces:
                async for piece in pieces:
                    yield piece

    @streams(credit=16, anywhere=True, where="model", continues=continued)
    async def complete(self, message: Complete) -> AsyncIterator[Piece]:
        """What follows a text, piece by piece."""
        if (route := await self._elsewhere(message.model)) is not None:
            wanted = _wanted(message, kind="complete", title=_title(message.prompt), continues=True)
            async with aclosing(self._relay(route, message, wanted)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        asked = await self._models.asked(message.model)
        self._models.places.check_open(asked.loaded.device)
        with asked.stays():
            prompt = message.prompt
            tokens = await asked.loaded.encode_text(prompt) if isinstance(prompt, str) else prompt
            wanted = _wanted(message, kind="complete", title=_title(prompt), continues=True)
            requests = await self._requests(asked, tokens, message)
            async with aclosing(self._answers.give(asked, wanted, requests)) as pieces:
                async for piece in pieces:
                    yield piece

    @handles(deadline=None, concurrency=AT_ONCE, idempotent=True, anywhere=True, where="model")
    async def embed(self, message: Embed) -> Embeddings:
        """A vector of each text, by a model for that; chats go first, unless its class says otherwise."""
        check_texts(message.texts)
        owner = calling_user() or message.owner
        self._admission.ask(owner, self.clock.now())
        return await self._embedding.embed(message, owner)

    @handles
    async def pause(self, message: PauseProcess) -> None:
        """Let an answer rest, between two tokens; its reader waits."""
        self._relayed.check_not(message.pid, "paused")
        await self._answers.pause(message.pid, swap=message.swap)

    @handles
    async def resume(self, message: ResumeProcess) -> None:
        """Let a paused answer go on."""
        self._relayed.check_not(message.pid, "resumed")
        await self._answers.resume(message.pid)

    @handles(deadline=None)
    async def save(self, message: SaveContext) -> SavedContext:
        """Keep an answer as it is now, to go on with it later, also after a restart; it goes on."""
        self._relayed.check_not(message.pid, "saved")
        saved = await self._answers.save(message.pid)
        size = await self._contexts.save(_keeper(), message.name, saved)
        return SavedContext(message.name, size)

    @streams(credit=16)
    async def restore(self, message: RestoreContext) -> AsyncIterator[Piece]:
        """Go on with a saved context, as a new process."""
        saved = await self._contexts.load(_keeper(), message.name)
        asked = await self._models.asked(saved.model)
        with asked.stays():
            context = await asyncio.to_thread(Context.load, saved.context)
            grammar = await asked.loaded.compile(saved.grammar, context.request.owner)
            answer = self._answers.go_on(asked, saved, context, grammar, replay=message.replay)
            async with aclosing(answer) as pieces:
                async for piece in pieces:
                    yield piece

    @handles(idempotent=True)
    async def contexts(self) -> list[SavedContext]:
        """The caller's saved contexts."""
        found = await self._contexts.list(_keeper())
        return [SavedContext(name, size) for name, size in found]

    @handles
    async def forget(self, message: ForgetContext) -> None:
        """Delete a saved context of the caller's."""
        await self._contexts.forget(_keeper(), message.name)

    @handles(deadline=None)
    async def load(self, message: LoadModel) -> LoadedModel:
        """Put a model on the device, pulling it first if it is not stored."""
        return self._models.describe(await self._models.load(message.ref))

    @handles
    async def unload(self, message: UnloadModel) -> None:
        """Take a model off the device; its answers end with `UNAVAILABLE`."""
        if (encoder := self._models.encoders.find(message.name)) is not None:
            await self._models.encoders.unload(encoder)
            return
        loaded = self._models.find(message.name)
        if loaded.name == self._models.default:
            raise PreconditionFailed(f"'{loaded.name}' is the default model", remedy="boot with another --model")
        await self._models.unload(loaded)

    @handles(deadline=None)
    async def tune(self, message: TuneModel) -> Tuning:
        """Choose how many requests of a model run at once, and how many tokens a step has, by trying."""
        if not is_root():
            raise Denied("only root tunes models")
        return await self._tuner.tune(await self._models.get(message.model), anyway=message.anyway)

    @handles(deadline=None)
    async def load_adapter(self, message: LoadAdapter) -> LoadedModel:
        """Load a low-rank adapter beside a model; it is asked by its own name, as a model is."""
        adapter = await self._models.adapters.load(message.ref, message.model, message.name)
        return self._models.adapters.describe(adapter)

    @handles
    async def unload_adapter(self, message: UnloadAdapter) -> None:
        """Take an adapter off the device; refused while answers use it."""
        await self._models.adapters.unload(self._models.adapters.find(message.name))

    @handles(name="list", idempotent=True)
    async def list_models(self, message: ListModels) -> list[LoadedModel]:
        """All models and adapters that can be asked, the default one first: loaded, loading, stored and loaded when
        asked, served by other devices, or where that is asked on other nodes.
        """
        here = await self._models.shown()
        there = await self._relayed.shown([model.name for model in here], default=self._models.default)
        models = sorted([*here, *there], key=lambda model: not model.default)
        return await with_others(self, models) if message.everywhere else models

    @handles
    async def signal(self, message: Signal) -> None:
        """The scheduler ends, pauses, resumes or renices a process that is one of our answers, or embeds texts."""
        if self._embedding.has(message.pid):
            await self._embedding.signal(message)
        elif self._relayed.has(message.pid):
            self._relayed.signal(message)
        elif message.signal == "kill":
            self._answers.end(message.pid, CallCancelled(f"process {message.pid}: {message.why}"))
        elif message.signal == "pause":
            await self._answers.pause(message.pid, swap=False)
        elif message.signal == "resume":
            await self._answers.resume(message.pid)
        elif message.signal == "nice":
            await self._answers.renice(message.pid, message.nice)
        else:
            raise Invalid(f"inference does not know the signal '{message.signal}'", field="signal")

    @handles(idempotent=True)
    async def why(self, message: Explain) -> str:
        """What an answer waits for, as the rest of a sentence about its process."""
        if self._embedding.has(message.pid):
            return self._embedding.why(message.pid)
        if self._relayed.has(message.pid):
            return self._relayed.why(message.pid)
        return await self._answers.why(message.pid)

    @every(0.5)
    async def report(self) -> None:
        """Tell the scheduler what each answer has used so far, and cut readers that take nothing."""
        await self._answers.report()
        await self._embedding.report()
        await self._relayed.report()

    @every(1.0)
    async def tune_idle(self) -> None:
        """Tune models that rest and were not measured on their devices yet."""
        await self._tuner.tune_idle()

    @every(0.5)
    async def account(self) -> None:
        """Tell memory what the models take, and do what it asks for where it is short."""
        await self._models.places.look_after_memory()

    @on("memory.quotas")
    async def keep_quotas(self, event: Event) -> None:
        """Quotas have changed: what runs keeps them from now on."""
        await self._models.places.keep_quotas(convert(event.body, Quotas))

    @on("memory.pressure")
    async def feel_pressure(self, event: Event) -> None:
        """Memory is on another rung."""
        pressure = convert(event.body, Pressure)
        await self._models.encoders.press(pressure)
        await self._models.places.press(pressure)

    @on("service.scheduler.running")
    async def enter_again(self, _: Event) -> None:
        """A scheduler that has come back has an empty table."""
        await self._answers.enter_again()
        await self._embedding.enter_again()
        await self._relayed.enter_again()

    @on("models.changed")
    async def look_again(self, _: Event) -> None:
        """The store has other models."""
        self._models.stored_anew()

    @on("service.models.running")
    async def look_anew(self, _: Event) -> None:
        """A store has come, or come back."""
        self._models.stored_anew()

    @on("devices.tuned")
    async def spread(self, event: Event) -> None:
        """A device has another number of threads for each operation."""
        tuning = convert(event.body, Tuning)
        self._models.places.spread(tuning.device, tuning.chosen["spread"])

    @on("devices.*.quarantined")
    async def leave(self, event: Event) -> None:
        """Nothing is computed on a lost device any more: its models end, and are loaded elsewhere when asked."""
        self._models.leave(event.body["name"])

    def _charge(self, owner: str, tokens: int) -> None:
        """An answer has ended, or one more of its pieces was taken: so many tokens were computed for its owner."""
        self._admission.charge(owner, tokens, self.clock.now())

    async def _elsewhere(self, name: str | None) -> Route | None:
        """Where a model is that other devices serve; None for one of this node's, or of nobody's."""
        name = name or await self._models.default_name()
        if name in self._models or (route := await self._relayed.find(name)) is None:
            return None
        return None if await self._models.is_here(name) else route

    def _relay(self, route: Route, message: Chat | Complete, wanted: Wanted) -> AsyncGenerator[Piece, None]:
        """Answers by another device. Raises `Overloaded` for an owner who has had what the rates allow."""
        self._check_answers(message.n)
        owner = calling_user() or message.owner
        asks = requests_of(message, route)
        self._admission.ask(owner, self.clock.now(), requests=message.n)
        return self._relayed.give(route, wanted, asks, owner)

    def _check_answers(self, n: int) -> None:
        if not 1 <= n <= MOST_ANSWERS:
            raise Invalid(f"n is {n}, allowed is 1 to {MOST_ANSWERS}", field="n")

    async def _requests(self, asked: Asked, prompt: list[int], message: Chat | Complete) -> list[Request]:
        """A request for each answer, without a number."""
        self._check_answers(message.n)
        if message.begun and (message.n > 1 or message.logprobs is not None):
            raise Invalid("one answer goes on, without logprobs", field="begun")
        owner = calling_user() or message.owner
        runner = asked.loaded.runner
        places = asked.loaded.slots
        runner.wait.check(self.settings.longest_wait, running=runner.running, waiting=runner.waiting, places=places)
        self._admission.ask(owner, self.clock.now(), requests=message.n)
        first = asked.loaded.request(
            0,
            prompt,
            message,
            message.max_tokens,
            self.settings.sampling,
            owner=owner,
            adapter=asked.number,
            grammar=await asked.loaded.compile(message.grammar, owner),
        )
        return [
            msgspec.structs.replace(first, params=msgspec.structs.replace(first.params, seed=first.params.seed + place))
            for place in range(message.n)
        ]


def _wanted(message: Chat | Complete, *, kind: str, title: str, continues: bool) -> Wanted:
    return Wanted(
        kind=kind,
        title=title,
        stop=message.stop,
        continues=continues or message.grammar is not None,  # a grammar sees every byte, so a first space is kept
        grammar=message.grammar,
        logprobs=message.logprobs is not None,
        token_ids=message.return_token_ids,
        process_class=message.process_class,
        nice=checked_nice(message.nice),
        due=message.due,
    )


def _keeper() -> str:
    """Whose contexts the running call is about."""
    return calling_user() or "local"


def _title(content: str | list[Any] | None) -> str:
    text = " ".join(content.split()) if isinstance(content, str) else ""
    return text if len(text) <= TITLE else text[: TITLE - 1] + "…"
