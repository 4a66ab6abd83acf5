"""Continuous batching over pages: sequences join and leave the running batch between steps; hot: once a step.

A plain class without loop or thread. One step is one quantum and one pass over the model: every sequence that decodes
gets its next token, and what is left of a budget of tokens goes to prompts, in chunks, so that a long prompt delays
the others by one chunk and no more (https://arxiv.org/abs/2308.16369). Batch mates share a step, never a result.

Where pages run out, the sequence that came last gives its own back and waits; what it had computed may still be cached
when its turn comes, and is computed again where it is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Several

import msgspec
import torch

from microkernel.errors import (
    AlreadyExists,
    DataLoss,
    Invalid,
    MicrokernelError,
    PreconditionFailed,
    from_exception,
)
from services.inference.cache.cache import Cache, Room
from services.inference.cache.keys import PAGE
from services.inference.cache.ledger import Ledger
from services.inference.cache.saved import SavedPages
from services.inference.cache.status import Status
from services.inference.engine.contexts import Contexts
from services.inference.engine.forward import Decoder, Part
from services.inference.engine.relief import Relief
from services.inference.engine.sampler import NO_TOKEN, SamplerState, sample
from services.inference.engine.sequence import Request, Sequence

__all__ = ["Engine", "Output", "Request", "check_prompt"]

PATIENCE = 0.005  # seconds that a step waits for the disk where there is nothing to compute
CROWDED = 0.8  # share of the pages in use from which nothing new is admitted beside what runs


class Output(msgspec.Struct, frozen=True):
    """What a step gave one sequence. After a `finish_reason` (stop, length) or an `error` no more comes.

    With "stop", `token` is the stop token, which is no text. With an error it is -1.
    """

    id: int
    token: int
    finish_reason: str | None = None
    error: MicrokernelError | None = None


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
        ledger: Ledger | None = None,
    ) -> None:
        """Start empty.

        At most `max_batch` sequences run at once, none longer than `max_length` tokens (None: the model's context).
        One step computes `token_budget` tokens, and pages take up to `cache_bytes` (None: as much as the batch at
        full length needs). `space` names the model's content: equal prefixes in equal spaces have equal pages.
        Those of long contexts are kept in `saved` too, and found there again. One owner may have `owner_share` of the
        pages, if `set_quota` has said nothing else; `ledger` says what it may have of the whole device.
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
        self._max_batch = max_batch
        self._token_budget = token_budget
        self._space = space + decoder.layout.encode()
        self._storage = decoder.storage(self._pages)
        self._cache = Cache(
            self._pages,
            self._storage,
            deduplicate=decoder.invariant,
            ledger=ledger,
            page_bytes=self._storage.page_bytes,
        )
        self._contexts = Contexts(self._cache, self._storage, saved)
        self._owner_pages = None if owner_share >= 1.0 else max(1, int(owner_share * self._pages))
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # in the order in which they were admitted
        self._refused: list[Output] = []
        self._stuck = False  # what waits found no room, and nothing has changed since
        self.on_room: Callable[[], object] = lambda: None  # told when something outside of a step has made room
        batch = (self._running, self._waiting, self._give_up, self._look_again)
        self.relief = Relief(self._cache, self._storage, self.context_length, *batch)

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing until somebody asks for more."""
        works = any(not sequence.held for sequence in self._running)
        return not (works or self._refused or (self._waiting and not self._stuck))

    @property
    def running(self) -> int:
        """How many sequences are in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many requests wait for a place."""
        return len(self._waiting)

    @property
    def page_bytes(self) -> int:
        """What one page takes."""
        return self._storage.page_bytes

    @property
    def pages(self) -> Status:
        """The pages as they are now: free, cached, held; hits and misses."""
        return self._cache.status()

    def check(self, prompt: Several[int], max_tokens: int) -> None:
        """Raise `Invalid` for what this engine could not run; safe to call from any thread."""
        check_prompt(prompt, max_tokens, context_length=self.context_length, vocab_size=self._decoder.config.vocab_size)

    def add(self, request: Request) -> None:
        """Queue a request. One that cannot run gets its error as the next step's output."""
        if any(request.id == other.request.id for other in (*self._waiting, *self._running)):
            raise AlreadyExists(f"request {request.id} is running already")
        try:
            self.check(request.prompt, request.max_tokens)
            config = self._decoder.config
            state = SamplerState(request.params, request.prompt, config.vocab_size, self._decoder.device)
        except (MicrokernelError, ValueError, RuntimeError) as error:
            self._refused.append(_broken(request.id, error))
            return
        if self._owner_pages is not None and self._cache.quota(request.owner) is None:
            self._cache.set_quota(request.owner, self._owner_pages)
        limit = min(self.context_length, len(request.prompt) + request.max_tokens)
        self._waiting.append(Sequence(request, state, limit))
        self._stuck = False
        if self.relief.hopeless(self._waiting[-1]):
            self._refused.append(self._refuse(self._waiting[-1]))

    def cancel(self, id: int) -> bool:  # noqa: A002 - the request's own field
        """Forget a request; no more output comes for it. False if it is not here (any more)."""
        for sequence in self._running:
            if sequence.request.id == id:
                self._leave(sequence)
                return True
        for sequence in self._waiting:
            if sequence.request.id == id:
                self._waiting.remove(sequence)
                self._stuck = False
                return True
        before, self._refused = self._refused, [output for output in self._refused if output.id != id]
        return len(self._refused) < len(before)

    def hold(self, id: int, *, held: bool) -> None:  # noqa: A002 - as above
        """Let a sequence rest, its pages kept, or go on: its reader is behind. Does nothing before its first token."""
        for sequence in (*self._running, *self._waiting):
            if sequence.request.id == id and sequence.generated:
                sequence.held = held
                self._stuck &= sequence.table is not None  # without pages it waits to be admitted again

    def set_quota(self, owner: str, pages: int | None) -> None:
        """Let `owner` have so many pages, running and cached; None: as many as there are."""
        self._cache.set_quota(owner, pages)
        self._stuck = False

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Run one quantum: a token for every sequence that decodes, then prompts as far as the budget goes."""
        outputs, self._refused = self._refused, []
        self._contexts.take(self._running, wait=0.0)
        chosen = self._plan(outputs)
        if not chosen:
            self._contexts.take(self._running, wait=PATIENCE)
            return outputs
        parts = [self._part(sequence, count) for sequence, count in chosen]
        try:
            logits = self._decoder.forward(self._storage, parts)
        except (RuntimeError, MemoryError) as error:  # torch's out-of-memory is a RuntimeError
            return outputs + self._fail(error)
        answering = []
        for (sequence, _), part in zip(chosen, parts, strict=True):
            assert sequence.table is not None
            self._cache.advance(sequence.table, part.tokens)
            if part.wanted:
                answering.append(sequence)
                if len(part.tokens) > 1:
                    self._contexts.keep(sequence)  # a node that is killed has the prompt at least
        tokens = _sample(logits, [sequence.sampler for sequence in answering]) if answering else []
        outputs += [self._take(sequence, token) for sequence, token in zip(answering, tokens, strict=True)]
        return outputs

    def release_cache(self) -> None:
        """Forget all pages and give their memory back; only while nothing runs."""
        if self._running:
            raise PreconditionFailed(f"{len(self._running)} sequences are running")
        self._cache.evict(self._pages)
        self._cache.cool()
        self._storage.release()

    def _look_again(self) -> None:
        self._stuck = False
        self.on_room()

    def _part(self, sequence: Sequence, count: int) -> Part:
        assert sequence.table is not None
        start = sequence.table.length
        return Part(
            sequence.tokens[start : start + count],
            start,
            sequence.view(self._storage),
            wanted=1 if start + count == len(sequence.tokens) else 0,
        )

    # What a step computes

    def _plan(self, outputs: list[Output]) -> list[tuple[Sequence, int]]:
        """The sequences of the next step, and how many tokens of each."""
        chosen = [(sequence, 1) for sequence in self._decoding() if self._extend(sequence, 1)]
        chosen = [(sequence, count) for sequence, count in chosen if sequence.table is not None]  # not given up since
        budget = max(1, self._token_budget - len(chosen))
        for sequence in self._reading():
            if budget <= 0:
                return chosen
            count = min(budget, sequence.missing)
            chosen.append((sequence, count))
            budget -= count
        while budget > 0:
            admitted = self._admit(alone=not self._running)
            if admitted is None:
                break
            if admitted.loading is not None:
                continue
            count = min(budget, admitted.missing)
            chosen.append((admitted, count))
            budget -= count
        if not chosen and not self._running:
            hopeless = next((sequence for sequence in self._waiting if not self.relief.may_wait(sequence)), None)
            if hopeless is not None:
                outputs.append(self._refuse(hopeless))
        return chosen

    def _decoding(self) -> Iterator[Sequence]:
        for sequence in tuple(self._running):
            if sequence.table is not None and not sequence.held and not sequence.loading and sequence.missing == 1:
                yield sequence

    def _reading(self) -> list[Sequence]:
        return [sequence for sequence in self._running if sequence.missing > 1 and not sequence.loading]

    def _extend(self, sequence: Sequence, count: int) -> bool:
        """Room for `count` more tokens, if need be from whoever came last; False where the sequence has to wait."""
        while sequence.table is not None:
            room = self._cache.extend(sequence.table, sequence.table.length + count)
            if room is Room.GRANTED:
                return True
            self._give_up(self._last(sequence.request.owner if room is Room.OVER_QUOTA else None))
        return False

    def _last(self, owner: str | None) -> Sequence:
        """Who came last, of all or of an owner's: it has the least to lose."""
        return next(one for one in reversed(self._running) if owner is None or one.request.owner == owner)

    def _give_up(self, sequence: Sequence) -> None:
        """Take a sequence's pages; it is the next to be admitted."""
        self._contexts.keep(sequence)
        self._running.remove(sequence)
        self._cache.release(sequence.drop())
        self._waiting.appendleft(sequence)
        self._stuck = False

    def _admit(self, *, alone: bool) -> Sequence | None:
        """Let the first that waits and fits into the batch, with pages for all that it has; None where none can be."""
        if len(self._running) >= self._max_batch or not (self.relief.admitting or alone):
            self._stuck = bool(self._waiting)
        if self._stuck:
            return None
        over: set[str] = set()
        for sequence in self._waiting:
            owner = sequence.request.owner
            if owner in over or sequence.held:
                continue
            table = self._cache.begin(owner, self._space, sequence.tokens)
            needed = -(-len(sequence.tokens) // PAGE) - len(table.pages)
            crowded = self._cache.held + needed > CROWDED * self._cache.pages.limit and not alone
            room = Room.FULL if crowded else self._cache.extend(table, len(sequence.tokens))
            if room is Room.GRANTED:
                sequence.table = table
                self._contexts.begin(sequence)
                self._waiting.remove(sequence)
                self._running.append(sequence)
                return sequence
            self._cache.release(table)
            if room is not Room.OVER_QUOTA:
                break  # nobody overtakes: a long prompt would wait for ever behind short ones
            over.add(owner)
        self._stuck = bool(self._waiting)
        for owner in over:
            self._cache.wait(owner, self._look_again)
        return None

    def _refuse(self, sequence: Sequence) -> Output:
        """It cannot be admitted, and never will be."""
        self._waiting.remove(sequence)
        self._stuck = False
        return Output(sequence.request.id, NO_TOKEN, error=self.relief.refusal(sequence))

    # What a step gave

    def _take(self, sequence: Sequence, token: int | MicrokernelError) -> Output:
        request = sequence.request
        if isinstance(token, MicrokernelError):
            self._leave(sequence, broken=isinstance(token, DataLoss))
            return Output(request.id, NO_TOKEN, error=token)
        sequence.tokens.append(token)
        reason = None
        if token in request.stop_tokens:
            reason = "stop"
        elif len(sequence.tokens) >= sequence.limit:
            reason = "length"
        if reason is not None:
            self._leave(sequence)
        return Output(request.id, token, reason)

    def _leave(self, sequence: Sequence, *, broken: bool = False) -> None:
        """Out of the batch; what it has computed stays cached, unless its numbers are broken."""
        if not broken:
            self._contexts.keep(sequence)
        self._running.remove(sequence)
        self._stuck = False
        table = sequence.drop()
        if broken:
            for page in self._cache.clear(table):
                self._storage.clear(page)
        else:
            self._cache.release(table)

    def _fail(self, error: Exception) -> list[Output]:
        """End everything that runs with `error`, from a step that could not be done; what waits goes on."""
        outputs = [_broken(sequence.request.id, error) for sequence in self._running]
        for sequence in tuple(self._running):
            self._leave(sequence, broken=True)
        return outputs


def _sample(logits: torch.Tensor, states: Several[SamplerState]) -> list[int | MicrokernelError]:
    try:
        tokens = sample(logits, states).tolist()
    except (MicrokernelError, RuntimeError, ValueError, IndexError, OverflowError) as error:
        if len(states) == 1:
            return [from_exception(error, service="inference")]
        # One row's parameters spoilt the batch: each by itself, so that only that row ends.
        return [_sample(logits[row : row + 1], [state])[0] for row, state in enumerate(states)]
    broken = DataLoss(
        "the model's output holds no finite numbers",
        remedy="verify the model's files; a model that overflows in bfloat16 needs float32",
    )
    return [broken if token == NO_TOKEN else token for token in tokens]


def _broken(request: int, error: Exception) -> Output:
    return Output(request, NO_TOKEN, error=from_exception(error, service="inference"))


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
