"""Continuous batching over pages: sequences join and leave the running batch between steps; hot: once a step.

A plain class without loop or thread. One step is one quantum: every sequence that decodes gets its next token, and what
is left of a budget of tokens goes to prompts, in chunks, so that a long prompt delays the others by one chunk and no
more (https://arxiv.org/abs/2308.16369). Batch mates share a step, never a result.

Where pages run out, the sequence that came last gives its own back and waits; what it had computed may still be cached
when its turn comes, and is computed again where it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Several

import msgspec
import torch

from formats.checkpoint.adapter import Adapter
from microkernel.errors import (
    AlreadyExists,
    Invalid,
    MicrokernelError,
    NotFound,
    PreconditionFailed,
)
from microkernel.policy import Claim, Policy
from services.inference.cache.cache import Cache
from services.inference.cache.host import HostTier, Lowers
from services.inference.cache.keys import PAGE
from services.inference.cache.ledger import Ledger
from services.inference.cache.saved import SavedPages
from services.inference.cache.status import Status
from services.inference.engine.adapters import Adapters
from services.inference.engine.batch import Batch
from services.inference.engine.context import Context
from services.inference.engine.contexts import Contexts
from services.inference.engine.forward import Decoder
from services.inference.engine.output import Output, broken
from services.inference.engine.pace import Pace
from services.inference.engine.proposers import Proposer
from services.inference.engine.relief import Relief
from services.inference.engine.sampler import SamplerState
from services.inference.engine.sequence import Request, Sequence
from services.inference.engine.step import Step
from services.inference.grammar.matcher import CompiledGrammar

__all__ = ["Context", "Engine", "Request", "check_prompt"]


class Engine:
    """The running batch of one decoder. Every method runs on the decoder's device thread."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        max_batch: int = 32,
        token_budget: int = 512,
        max_length: int | None = None,
        cache_bytes: int | None = None,
        space: bytes = b"",
        saved: SavedPages | None = None,
        owner_share: float = 1.0,
        slowdown: float = 1.7,
        proposer: Proposer | None = None,
        host_bytes: int = 0,
        ledger: Ledger | None = None,
        steps: Iterable[tuple[int, int, float]] = (),
    ) -> None:
        """Start empty.

        At most `max_batch` sequences run at once, none longer than `max_length` tokens (None: the model's context).
        One step computes `token_budget` tokens, and pages take up to `cache_bytes` (None: as much as the batch at
        full length needs). `space` names the model's content: equal prefixes in equal spaces have equal pages.
        Those of long contexts are kept in `saved` too, and found there again. One owner may have `owner_share` of the
        pages, if `set_quota` has said nothing else; `ledger` says what it may have of the whole device. Steps that read
        prompts are to take at most `slowdown` times what those who decode would take alone. What `proposer` guesses is
        computed beforehand, where that changes nothing. What a device with memory of its own has to forget is kept in
        `host_bytes` of the machine's, where the decoder's pages can be. `steps` tell what some took on this machine
        before: how many decoded, how many tokens of prompts were read, and the seconds.
        """
        config = decoder.config
        longest = config.context_length if max_length is None else min(max_length, config.context_length)
        whole = -(-longest // PAGE)
        self._pages = max_batch * whole
        if cache_bytes is not None:
            self._pages = cache_bytes // decoder.storage(1).page_bytes
        self.context_length = min(longest, self._pages * PAGE)
        if self.context_length < 2 or max_batch < 1 or token_budget < 1:
            raise Invalid(f"{self._pages} pages, a batch of {max_batch} and a budget of {token_budget} cannot run")
        self._decoder = decoder
        self._space = space + decoder.layout.encode()
        self._adapters = Adapters(decoder, self._space)
        self._storage = decoder.storage(self._pages)
        self._cache = Cache(
            self._pages,
            self._storage,
            deduplicate=decoder.invariant,
            found_again=decoder.paged,
            ledger=ledger,
            page_bytes=self._storage.page_bytes,
        )
        host = None
        if host_bytes and isinstance(self._storage, Lowers):
            host = HostTier(self._storage, host_bytes, pinned=decoder.device.type == "cuda")
        self._contexts = Contexts(self._cache, self._storage, saved if decoder.paged else None, host)
        self._owner_pages = None if owner_share >= 1.0 else max(1, int(owner_share * self._pages))
        pace = Pace(slowdown)
        for step in steps:
            pace.note(*step)
        self._batch = Batch(
            self._cache,
            self._storage,
            self._contexts,
            pace,
            space=self._adapters.space,
            most=max_batch,
            budget=token_budget,
            paged=decoder.paged,
        )
        guessing = proposer if decoder.invariant else None
        self._step = Step(decoder, self._storage, self._cache, self._contexts, self._batch, pace, guessing)
        self._refused: list[Output] = []
        self.relief = Relief(self._cache, self._storage, self.context_length, self._batch.places, guessing)

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing until somebody asks for more."""
        return not self._refused and self._batch.idle

    @property
    def running(self) -> int:
        """How many sequences are in the batch."""
        return len(self._batch.places.running)

    @property
    def waiting(self) -> int:
        """How many requests wait for a place."""
        return len(self._batch.places.waiting) + self._batch.followers

    @property
    def paused(self) -> int:
        """How many requests rest."""
        return len(self._batch.places.paused)

    @property
    def guessed(self) -> tuple[int, int]:
        """How many tokens were guessed so far, and how many of them were right."""
        return self._step.guessed, self._step.guessed_right

    @property
    def vocab_size(self) -> int:
        """How many tokens the model knows."""
        return self._decoder.config.vocab_size

    @property
    def page_bytes(self) -> int:
        """What one page takes."""
        return self._storage.page_bytes

    @property
    def on_room(self) -> Callable[[], object]:
        """Called when something outside of a step has made room."""
        return self._batch.places.on_room

    @on_room.setter
    def on_room(self, told: Callable[[], object]) -> None:
        self._batch.places.on_room = told

    @property
    def pages(self) -> Status:
        """The pages as they are now: free, cached, held; hits and misses."""
        return self._cache.status()

    def check(self, prompt: Several[int], max_tokens: int) -> None:
        """Raise `Invalid` for what this engine could not run; safe to call from any thread."""
        check_prompt(prompt, max_tokens, context_length=self.context_length, vocab_size=self._decoder.config.vocab_size)

    def adapter_bytes(self, adapter: Adapter) -> int:
        """What an adapter would take in memory; safe to call from any thread."""
        return self._decoder.adapter_bytes(adapter)

    def add_adapter(self, adapter: Adapter) -> int:
        """Take an adapter; returns what requests call it."""
        return self._adapters.add(adapter)

    def remove_adapter(self, adapter: int) -> None:
        """Forget an adapter. Raises `PreconditionFailed` while a request asks for it, running or waiting."""
        self._adapters.remove(adapter, self._batch.requests)

    def add(self, request: Request) -> None:
        """Queue a request. One that cannot run gets its error as the next step's output."""
        self._enter(self._sequence(request))

    def save(self, id: int) -> Context:  # noqa: A002 - the request's own field
        """The context of a request as it is now; it goes on, or rests, as it did. Raises `NotFound`."""
        sequence = self._batch.find(id)
        if sequence is None:
            raise NotFound(f"request {id} is not running")
        table = sequence.table
        length = 0 if table is None else table.length
        if not self._decoder.paged:
            length = 0  # its pages only count: it is computed again
        held = [] if table is None else table.pages[: -(-length // PAGE)]
        return Context(
            space=self._adapters.space(sequence.request),
            request=msgspec.structs.replace(sequence.request, grammar=None),
            answer=tuple(sequence.tokens[len(sequence.request.prompt) :]),
            draws=sequence.sampler.draws,
            length=length,
            pages=[self._storage.read(page) for page in held],
        )

    def restore(
        self,
        context: Context,
        id: int,  # noqa: A002 - as above
        *,
        adapter: int | None = None,
        grammar: CompiledGrammar | None = None,
        claim: Claim | None = None,
    ) -> None:
        """Go on with a context, as request `id`: its next token is the one that it would have had.

        `adapter` is the number that its adapter has here, and `grammar` what it was constrained by; `claim`, if there
        is one, takes the place of its own. Raises `PreconditionFailed` for one of another model or adapter, or of other
        kernels.
        """
        claim = claim or context.request.claim
        request = msgspec.structs.replace(
            context.request, id=id, fork_of=None, adapter=adapter, grammar=grammar, claim=claim
        )
        self._adapters.check(request)
        fits = context.space == self._adapters.space(request)
        if not fits or any(len(page) != self.page_bytes for page in context.pages):
            raise PreconditionFailed(
                "the context is of another model or adapter, or of another kind of device",
                remedy="restore it where it was saved",
            )
        sequence = self._sequence(request)
        if sequence is not None:
            sequence.tokens += context.answer
            sequence.sampler.catch_up(context.answer, context.draws)
            sequence.brought = (context.pages, context.length)
        self._enter(sequence)

    def _enter(self, sequence: Sequence | None) -> None:
        if sequence is None:
            return
        if self._batch.is_hopeless(sequence):
            self._refused.append(broken(sequence.request.id, self._batch.refusal(sequence)))
            return
        self._batch.enter(sequence)

    def _sequence(self, request: Request) -> Sequence | None:
        """A new one; None where it cannot run: the next step says why. Raises `AlreadyExists`."""
        if self._batch.find(request.id) is not None:
            raise AlreadyExists(f"request {request.id} is running already")
        try:
            self.check(request.prompt, request.max_tokens)
            self._adapters.check(request)
            config = self._decoder.config
            state = SamplerState(
                request.params, request.prompt, config.vocab_size, self._decoder.device, request.constraint()
            )
        except (MicrokernelError, ValueError, RuntimeError) as error:
            self._refused.append(broken(request.id, error))
            return None
        if self._owner_pages is not None and self._cache.quota(request.owner) is None:
            self._cache.set_quota(request.owner, self._owner_pages)
        sequence = Sequence(request, state, min(self.context_length, len(request.prompt) + request.max_tokens))
        if request.begun:  # each token that is not the likeliest took one number
            sequence.tokens += request.begun
            state.catch_up(request.begun, 0 if request.params.greedy else len(request.begun))
        return sequence

    def cancel(self, id: int) -> bool:  # noqa: A002 - the request's own field
        """Forget a request; no more output comes for it. False if it is not here (any more)."""
        sequence = self._batch.find(id)
        if sequence is not None:
            self._batch.leave(sequence)
            return True
        before, self._refused = self._refused, [output for output in self._refused if output.id != id]
        return len(self._refused) < len(before)

    def hold(self, id: int, *, held: bool) -> None:  # noqa: A002 - as above
        """Let a sequence rest, its pages kept, or go on: its reader is behind. Does nothing before its first token."""
        sequence = self._batch.find(id)
        if sequence is not None and sequence.generated:
            sequence.held = held
            if sequence.table is None:
                self._batch.places.look_again()  # without pages it waits to be admitted again

    def pause(self, id: int, *, paused: bool) -> bool:  # noqa: A002 - as above
        """Let a request rest, in any state, or go on; its pages stay while nobody else needs them. False if unknown."""
        sequence = self._batch.find(id)
        if sequence is not None:
            (self._batch.pause if paused else self._batch.places.resume)(sequence)
        return sequence is not None

    def swap_out(self, id: int) -> bool:  # noqa: A002 - as above
        """Take the pages of a request that is paused; it goes on all the same. False if unknown."""
        sequence = self._batch.find(id)
        if sequence is not None:
            self._batch.places.swap_out(sequence)
        return sequence is not None

    def schedule_by(self, policy: Policy) -> None:
        """Have those who wait get their places by `policy`, which nobody else uses."""
        self._batch.schedule_by(policy)

    def limit(self, *, max_batch: int, token_budget: int) -> None:
        """Have no more than so many sequences at once, and tokens in a step, from the next one on; what runs stays."""
        self._batch.limit(max_batch, token_budget)

    def beside(self, *, max_batch: int, token_budget: int, cache_bytes: int) -> Engine:
        """An engine of the same weights, with pages and a batch of its own; to be closed before this one is."""
        return Engine(
            self._decoder,
            max_batch=max_batch,
            token_budget=token_budget,
            max_length=self.context_length,
            cache_bytes=cache_bytes,
        )

    @property
    def claims(self) -> dict[Claim, float]:
        """Who had a part in the last step, and how many tokens each."""
        return self._step.claims

    def renice(self, id: int, claim: Claim) -> bool:  # noqa: A002 - the request's own field
        """Give a request another claim; False if unknown."""
        sequence = self._batch.find(id)
        if sequence is not None:
            self._batch.renice(sequence, claim)
        return sequence is not None

    def why(self, id: int) -> str:  # noqa: A002 - as above
        """What a request waits for, or that it runs, as the rest of a sentence about it. Raises `NotFound`."""
        sequence = self._batch.find(id)
        if sequence is None:
            raise NotFound(f"request {id} is not running")
        return self._batch.why(sequence)

    def set_quota(self, owner: str, pages: int | None) -> None:
        """Let `owner` have so many pages, running and cached; None: as many as there are."""
        self._cache.set_quota(owner, pages)

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Run one quantum: a token for every sequence that decodes, then prompts as far as the budget goes."""
        refused, self._refused = self._refused, []
        return refused + self._step.run()

    def release_cache(self) -> None:
        """Forget all pages and give their memory back; only while nothing runs."""
        if self._batch.places.running:
            raise PreconditionFailed(f"{len(self._batch.places.running)} sequences are running")
        for sequence in self._batch.places.paused:
            self._batch.places.swap_out(sequence)
        self._cache.evict(self._pages)
        self._cache.cool()
        self._storage.release()

    def close(self) -> None:
        """Let weights and pages go, whoever still knows this engine; nothing but this may be called afterwards."""
        if self.relief.closed:
            return
        self.relief.close()
        del self._decoder, self._adapters, self._step, self._batch, self._contexts, self._cache, self._storage


def check_prompt(prompt: Several[int], max_tokens: int, *, context_length: int, vocab_size: int) -> None:
    """Raise `Invalid` for what no engine of such a model could run; cheap, for callers to ask first."""
    if not prompt:
        raise Invalid("the prompt has no tokens", field="prompt")
    if len(prompt) >= context_length:
        raise Invalid(
            f"the prompt has {len(prompt)} tokens, and the context holds {context_length} with the answer",
            field="prompt",
            remedy="shorten the prompt",
        )
    if max_tokens < 1:
        raise Invalid(f"max_tokens is {max_tokens}, and at least 1 is needed", field="max_tokens")
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        raise Invalid(f"the prompt has a token outside of 0 to {vocab_size - 1}", field="prompt")
