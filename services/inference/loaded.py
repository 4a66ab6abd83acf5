"""A model on its device: how it is asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from formats.checkpoint.adapter import Adapter
from formats.checkpoint.architecture import DecoderConfig
from formats.text.template import encode_prompt
from microkernel.errors import Invalid, Unavailable
from microkernel.executor import Executor
from microkernel.policy import Claim
from services.inference.cache.ledger import Ledger
from services.inference.cache.saved import SavedPages
from services.inference.engine.engine import Engine, Request, check_prompt
from services.inference.engine.relief import Relief
from services.inference.engine.sampler import resolve
from services.inference.engine.trials import Trials, measure, room
from services.inference.fitting import buffer_bytes
from services.inference.grammar.compiler import GrammarCompiler
from services.inference.grammar.matcher import CompiledGrammar
from services.inference.messages import ChatMessage, Grammar, LoadedModel, OutputParams, SamplingParams
from services.inference.opened import Fit, Opened, make_engine
from services.inference.output_params import check_begun, check_output, logit_bias, stop_tokens
from services.inference.runner import Runner
from services.inference.settings import InferenceSettings
from services.inference.sizes import Sizes
from services.memory.messages import Reservation

__all__ = ["Loaded"]

ENCODERS = 2  # prompts that are rendered and tokenized at a time; the others wait
T = TypeVar("T")

SHORT_TEXT = 2_000  # characters that are tokenized on the loop in well under a millisecond


class Loaded:
    """A model that answers."""

    def __init__(
        self,
        name: str,
        opened: Opened,
        size: Fit,
        sizes: Sizes,
        engine: Engine,
        executor: Executor,
        now: Callable[[], float],
    ) -> None:
        self.name = name
        self.size = size
        self.sizes = sizes
        self.subject = opened.subject
        self._token_budget = sizes.token_budget  # that memory is reserved for
        self.tokenizer = opened.tokenizer
        self.runner = Runner(engine, executor, now)
        self.ref = name  # what it is found by again
        self.device = executor.name
        self.reservations: list[Reservation] = []  # of all that it takes but the pages and adapters
        self.adapters: dict[int, Reservation] = {}  # by what the engine calls them
        self.pages: Reservation | None = None
        self.created = int(time.time())
        self.asked_at = now()
        self._now = now
        self._asking = 0
        self.task: asyncio.Task[None] | None = None
        self.config: DecoderConfig = opened.checkpoint.config
        self._template = opened.template
        self._sampling = opened.sampling
        self._engine = engine
        self._relief = engine.relief
        self._executor = executor
        self._encoders = ThreadPoolExecutor(ENCODERS)
        self._grammars = GrammarCompiler(opened.tokenizer, opened.checkpoint.config.vocab_size)

    @staticmethod
    async def load(
        name: str,
        opened: Opened,
        size: Fit,
        sizes: Sizes,
        executor: Executor,
        now: Callable[[], float],
        *,
        settings: InferenceSettings,
        saved: SavedPages | None = None,
        draft: Opened | None = None,
        host_bytes: int = 0,
        ledger: Ledger | None = None,
    ) -> Loaded:
        """Read the weights onto the device; takes seconds, on the compute thread."""

        def make() -> Engine:
            return make_engine(
                opened,
                size,
                token_budget=sizes.token_budget,
                saved=saved,
                owner_share=settings.owner_share,
                slowdown=settings.slowdown,
                guesses=draft or settings.speculation != "off",
                host_bytes=host_bytes,
                ledger=ledger,
                steps=sizes.steps,
            )

        return Loaded(name, opened, size, sizes, await executor.run(make), executor, now)

    async def with_pages(self, work: Callable[[Relief], T]) -> T | None:
        """Have something done to its pages on the device's thread, between two steps; None where it has left."""

        def on_device() -> T | None:
            return None if self._relief.closed else work(self._relief)

        return await self._executor.run(on_device)

    def trial_bytes(self, slots: int, tokens: int) -> int:
        """What `try_steps` takes in memory."""
        return room(self._engine, slots, tokens) + buffer_bytes(self.config, tokens, slots)

    async def try_steps(self, slots: int, tokens: int, claim: Claim) -> Trials:
        """What steps take of batches of up to `slots`, and of prompts of up to `tokens`, step by step as `claim` says.

        Raises `Unavailable` where it is unloaded meanwhile.
        """
        if self._relief.closed:
            raise Unavailable(f"model '{self.name}' is being unloaded", may_have_run=False)
        trials = partial(measure, self._engine, most_slots=slots, most_tokens=tokens)
        return await self._executor.run(trials, claim=claim)

    async def use(self, sizes: Sizes) -> None:
        """Have other sizes from the next step on, as far as memory is reserved for them."""
        slots, tokens = min(self.size.slots, sizes.slots), min(self._token_budget, sizes.token_budget)
        await self.runner.ask(lambda engine: engine.limit(max_batch=slots, token_budget=tokens))
        self.sizes = sizes

    @property
    def slots(self) -> int:
        """How many requests run at once."""
        return min(self.size.slots, self.sizes.slots)

    @property
    def idle(self) -> bool:
        """Whether nobody asks it anything."""
        return self._asking == 0

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Somebody asks it something, from here to the end of the block: it stays."""
        self.asked_at = self._now()
        with self.kept():
            yield

    @contextmanager
    def kept(self) -> Iterator[None]:
        """It stays to the end of the block, and nobody has asked it."""
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1

    @property
    def context_length(self) -> int:
        """The longest prompt and answer together, in tokens."""
        return self.size.length

    async def encode_chat(self, messages: list[ChatMessage]) -> list[int]:
        """The prompt for a conversation. Raises `Invalid` where the template or the messages do not allow it."""
        template = self._template
        if isinstance(template, str):
            raise Invalid(
                f"model '{self.name}' cannot chat: {template}",
                field="messages",
                remedy="ask it to complete a text instead, or use a model that was tuned for chats",
            )

        def encode() -> list[int]:
            segments = template.render(messages)  # its size is bounded by the sandbox
            self._check_text(sum(len(segment.text) for segment in segments), "messages")
            return encode_prompt(self.tokenizer, segments)

        # A stranger's template may take its time, however short the text is.
        return await asyncio.get_running_loop().run_in_executor(self._encoders, encode)

    async def encode_text(self, text: str) -> list[int]:
        """The tokens of a text to be completed."""
        self._check_text(len(text), "prompt")
        if len(text) < SHORT_TEXT:
            return self._encode(text)
        return await asyncio.get_running_loop().run_in_executor(self._encoders, self._encode, text)

    def adapter_bytes(self, adapter: Adapter) -> int:
        """What an adapter would take in memory."""
        return self._engine.adapter_bytes(adapter)

    async def add_adapter(self, adapter: Adapter) -> int:
        """Put an adapter beside the model; returns what its requests call it."""
        return await self.runner.ask(lambda engine: engine.add_adapter(adapter))

    async def remove_adapter(self, number: int) -> None:
        """Take an adapter away. Raises `PreconditionFailed` while requests use it."""
        await self.runner.ask(lambda engine: engine.remove_adapter(number))

    async def compile(self, grammar: Grammar | None, owner: str) -> CompiledGrammar | None:
        """What a request's grammar lets its answer be. Raises `Invalid` that says what is wrong with it."""
        return None if grammar is None else await self._grammars.compile(grammar, owner)

    async def close(self) -> None:
        """End its answers and its threads, and let weights and pages go; nothing can be asked or encoded afterwards.

        Closing twice is harmless, and so is closing again where the first was cut off.
        """
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
        self._encoders.shutdown(wait=False, cancel_futures=True)
        self._grammars.close()
        await self.runner.close()

    def request(
        self,
        number: int,
        prompt: list[int],
        params: OutputParams,
        max_tokens: int | None,
        defaults: SamplingParams,
        *,
        owner: str = "local",
        adapter: int | None = None,
        grammar: CompiledGrammar | None = None,
    ) -> Request:
        """A request for the engine. Raises `Invalid` that names the field which does not fit."""
        room = self.context_length - len(prompt)
        wanted = max(1, room) if max_tokens is None else max_tokens
        check_prompt(prompt, wanted, context_length=self.context_length, vocab_size=self.config.vocab_size)
        check_output(params, wanted, self.config.vocab_size)
        check_begun(params.begun, min(wanted, room), self.config.vocab_size)
        return Request(
            id=number,
            prompt=prompt,
            max_tokens=min(wanted, room),
            params=resolve(params, self._sampling, defaults),
            stop_tokens=stop_tokens(params, self.tokenizer.eos_ids),
            owner=owner,
            adapter=adapter,
            min_tokens=params.min_tokens,
            logit_bias=logit_bias(params),
            grammar=grammar,
            logprobs=params.logprobs,
            begun=tuple(params.begun),
        )

    def describe(self, *, default: bool) -> LoadedModel:
        """The model as it is shown."""
        return LoadedModel(
            name=self.name,
            state="ready",
            architecture=self.config.architecture,
            quantization=self.config.quantization,
            parameters=self.config.parameters,
            context_length=self.context_length,
            weight_bytes=self.size.weight_bytes,
            cache_bytes=self.size.cache_bytes,
            device=self.device,
            default=default,
            created=self.created,
            running=self.runner.running,
            waiting=self.runner.waiting,
        )

    def _check_text(self, characters: int, field: str) -> None:
        """Refuse a text that cannot fit, however it is cut into tokens, before time is spent on cutting it.

        Whoever templates cut messages short decides what is sent, so this looks at the text that came out of them.
        """
        most = self.context_length * self.tokenizer.longest_token
        if characters > most:
            raise Invalid(
                f"the prompt has {characters} characters, and at most {most} can fit into the context of "
                f"{self.context_length} tokens",
                field=field,
            )

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_bos=self.tokenizer.add_bos, parse_special=False)
