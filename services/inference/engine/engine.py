"""Continuous batching: sequences join and leave the running batch between steps; hot: runs once a token.

A plain class without loop or thread. One step is one quantum: every running sequence gets its next token first, then
waiting prompts are read in chunks under a budget of tokens, so that a long prompt delays the others by one chunk and
no more (https://arxiv.org/abs/2308.16369). Batch mates share a step, never a result: each has its own cache slot,
positions and sampler state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum

import msgspec
import torch

from microkernel.errors import AlreadyExists, DataLoss, Invalid, MicrokernelError, PreconditionFailed, from_exception
from services.inference.eager.attention import Decode, Prefill
from services.inference.eager.decoder import Decoder
from services.inference.eager.kv_cache import KVCache, token_bytes
from services.inference.engine.sampler import NO_TOKEN, ResolvedSampling, SamplerState, sample

__all__ = ["Engine", "Output", "Request", "check_prompt"]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for up to `max_tokens` tokens after `prompt`. `id` is the caller's: no two at once have the same."""

    id: int
    prompt: Sequence[int]
    max_tokens: int
    params: ResolvedSampling
    stop_tokens: frozenset[int] = frozenset()


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
        max_batch: int = 16,
        token_budget: int = 512,
        max_length: int | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        """Start empty.

        At most `max_batch` sequences run at once, none longer than `max_length` tokens (None: the model's context).
        One step reads `token_budget` tokens, and the cache takes up to `cache_bytes` (None: as much as the batch at
        full length needs). Nothing is allocated yet.
        """
        config = decoder.config
        longest = config.context_length if max_length is None else min(max_length, config.context_length)
        tokens = max_batch * longest
        if cache_bytes is not None:
            tokens = min(tokens, cache_bytes // token_bytes(config, decoder.dtype))
        self.context_length = min(longest, tokens)
        if self.context_length < 2 or max_batch < 1 or token_budget < 1:
            raise Invalid(
                f"a cache of {tokens} tokens, a batch of {max_batch} and a budget of {token_budget} cannot run"
            )
        self._decoder = decoder
        self._max_batch = max_batch
        self._token_budget = token_budget
        self._cache = KVCache(
            config,
            max_slots=max_batch,
            max_length=self.context_length,
            max_tokens=tokens,
            device=decoder.device,
            dtype=decoder.dtype,
        )
        self._waiting: deque[Request] = deque()
        self._active: list[_Active] = []  # by slot, in the order of `_Rank`
        self._refused: list[Output] = []
        self._full = False  # what waits found no room, and nothing has changed since

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing until somebody asks for more."""
        works = any(active.rank is not _Rank.HELD for active in self._active)
        return not (works or self._refused or (self._waiting and not self._full))

    @property
    def running(self) -> int:
        """How many sequences hold a slot."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return len(self._waiting)

    @property
    def cache_bytes(self) -> int:
        """What the cache takes now."""
        return self._cache.nbytes

    def check(self, prompt: Sequence[int], max_tokens: int) -> None:
        """Raise `Invalid` for what this engine could not run; safe to call from any thread."""
        check_prompt(prompt, max_tokens, context_length=self.context_length, vocab_size=self._decoder.config.vocab_size)

    def add(self, request: Request) -> None:
        """Queue a request. One that cannot run gets its error as the next step's output."""
        if any(request.id == other.id for other in (*self._waiting, *(active.request for active in self._active))):
            raise AlreadyExists(f"request {request.id} is running already")
        try:
            self.check(request.prompt, request.max_tokens)
        except Invalid as error:
            self._refused.append(Output(request.id, NO_TOKEN, error=error))
        else:
            self._waiting.append(request)
            self._full = False

    def cancel(self, id: int) -> bool:  # noqa: A002 - the request's own field
        """Forget a request; no more output comes for it. False if it is not here (any more)."""
        for slot, active in enumerate(self._active):
            if active.request.id == id:
                self._remove(slot, clear=active.rank is _Rank.READING)
                return True
        for request in self._waiting:
            if request.id == id:
                self._waiting.remove(request)
                self._full = False
                return True
        return False

    def hold(self, id: int, *, held: bool) -> None:  # noqa: A002 - as above
        """Let a sequence rest, its slot kept, or go on: its reader is behind. Does nothing while its prompt is read."""
        wanted = _Rank.HELD if held else _Rank.DECODING
        for slot, active in enumerate(self._active):
            if active.request.id == id and active.rank is not _Rank.READING and active.rank is not wanted:
                edge = self._count(_Rank.DECODING) - (1 if held else 0)
                self._swap(slot, edge)
                active.rank = wanted
                return

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Run one quantum: a token for every running sequence, then prompts as far as the budget goes."""
        outputs, self._refused = self._refused, []
        decoding = self._count(_Rank.DECODING)
        if decoding:
            outputs += self._decode(decoding)
        self._prefill(max(1, self._token_budget - decoding), outputs)
        return outputs

    def release_cache(self) -> None:
        """Give the cache's memory back; only while nothing runs."""
        if self._active:
            raise PreconditionFailed(f"{len(self._active)} sequences are running")
        self._cache.release()

    def _decode(self, count: int) -> list[Output]:
        decoding = self._active[:count]
        tokens = torch.tensor([active.last for active in decoding])
        lengths = [active.length for active in decoding]
        try:
            self._cache.reserve(len(self._active), max(lengths) + 1)
            logits = self._decoder.forward(tokens, Decode(self._cache, lengths, self._decoder.device))
        except (RuntimeError, MemoryError) as error:  # torch's out-of-memory is a RuntimeError
            return self._fail(error)
        assert logits is not None
        for active in decoding:
            active.length += 1
        return self._choose(logits, range(count))

    def _prefill(self, budget: int, outputs: list[Output]) -> None:
        while budget > 0:
            if not self._count(_Rank.READING) and not self._admit(outputs):
                return
            slot, active = len(self._active) - 1, self._active[-1]
            prompt = active.request.prompt
            chunk = torch.tensor(prompt[active.length : active.length + budget])
            end = active.length + len(chunk)
            complete = end == len(prompt)
            try:
                self._cache.reserve(len(self._active), end)
                attention = Prefill(self._cache, slot, active.length, len(chunk), self._decoder.device)
                logits = self._decoder.forward(chunk, attention, last=1 if complete else 0)
            except (RuntimeError, MemoryError) as error:
                outputs.append(_broken(active.request.id, error))
                self._remove(slot, clear=True)
                continue
            active.length = end
            budget -= len(chunk)
            if complete:
                assert logits is not None
                slot = self._start_decoding(slot)
                outputs += self._choose(logits, range(slot, slot + 1))

    def _admit(self, outputs: list[Output]) -> bool:
        """Give the first waiting request a slot; False where there is none, or it does not fit beside the others."""
        while self._waiting and len(self._active) < self._max_batch:
            request = self._waiting[0]
            longest = max(self._limit(request), *(self._limit(active.request) for active in self._active), 0)
            if not self._cache.fits(len(self._active) + 1, longest):
                break
            self._waiting.popleft()
            try:
                state = SamplerState(
                    request.params, request.prompt, self._decoder.config.vocab_size, self._decoder.device
                )
            except (MicrokernelError, ValueError, RuntimeError) as error:
                outputs.append(_broken(request.id, error))
                continue
            self._active.append(_Active(request, state))
            return True
        self._full = bool(self._waiting)
        return False

    def _limit(self, request: Request) -> int:
        """How many tokens the request may come to have, prompt and answer."""
        return min(self.context_length, len(request.prompt) + request.max_tokens)

    def _choose(self, logits: torch.Tensor, slots: range) -> list[Output]:
        """Sample a token for each of `slots`, and let those go that are done."""
        chosen = _sample(logits, [self._active[slot].sampler for slot in slots])
        outputs = []
        for slot, token in zip(reversed(slots), reversed(chosen), strict=True):  # from above: slots below stay
            active = self._active[slot]
            output = self._advance(active, token)
            outputs.append(output)
            if output.finish_reason or output.error:
                self._remove(slot, clear=output.error is not None)
        return outputs[::-1]

    def _advance(self, active: _Active, token: int | MicrokernelError) -> Output:
        request = active.request
        if isinstance(token, MicrokernelError):
            return Output(request.id, NO_TOKEN, error=token)
        active.last = token
        active.generated += 1
        if token in request.stop_tokens:
            return Output(request.id, token, "stop")
        if len(request.prompt) + active.generated >= self._limit(request):
            return Output(request.id, token, "length")
        return Output(request.id, token)

    def _start_decoding(self, slot: int) -> int:
        """The prompt in the last slot has been read; returns the slot that it has now."""
        edge = self._count(_Rank.DECODING)
        self._swap(slot, edge)
        self._active[edge].rank = _Rank.DECODING
        return edge

    def _remove(self, slot: int, *, clear: bool = False) -> None:
        """Free a slot and close the gap, each rank filling it from its own end."""
        if clear:
            self._cache.clear(slot)
        self._full = False
        gap = slot
        for rank in _Rank:
            last = max((other for other, active in enumerate(self._active) if active.rank is rank), default=-1)
            if last > gap:
                self._move(last, gap)
                gap = last
        self._active.pop()

    def _count(self, rank: _Rank) -> int:
        return sum(active.rank is rank for active in self._active)

    def _swap(self, one: int, other: int) -> None:
        if one != other:
            a, b = self._active[one], self._active[other]
            self._cache.swap(one, other, max(a.length, b.length))
            self._active[one], self._active[other] = b, a

    def _move(self, source: int, target: int) -> None:
        self._active[target] = self._active[source]
        self._cache.move(source, target, self._active[target].length)

    def _fail(self, error: Exception) -> list[Output]:
        """End everything that runs with `error`, from a step that could not be done; what waits goes on."""
        outputs = [_broken(active.request.id, error) for active in self._active]
        self._active.clear()
        self._full = False
        self._cache.release()
        return outputs


class _Rank(Enum):
    """What a sequence is doing; slots are taken in this order, so that those that decode are a view of the cache."""

    DECODING = 0
    HELD = 1
    READING = 2  # its prompt; at most one does


class _Active:
    """A sequence that has a slot."""

    __slots__ = ("generated", "last", "length", "rank", "request", "sampler")

    def __init__(self, request: Request, sampler: SamplerState) -> None:
        self.request = request
        self.sampler = sampler
        self.length = 0  # tokens in the cache
        self.generated = 0
        self.last = NO_TOKEN  # chosen, and not in the cache yet
        self.rank = _Rank.READING


def _sample(logits: torch.Tensor, states: Sequence[SamplerState]) -> list[int | MicrokernelError]:
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


def check_prompt(prompt: Sequence[int], max_tokens: int, *, context_length: int, vocab_size: int) -> None:
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
