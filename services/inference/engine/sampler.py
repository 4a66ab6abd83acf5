"""Hot, once a step on the device thread: chooses the next token of every sequence in a batch from its logits.

Order of operations, as the field has it (transformers, vLLM): constraints, penalties, temperature, top-k, top-p, min-p;
what is left is drawn by its share. Each filter sees what the one before it kept, renormalised.

- repetition penalty: CTRL, https://arxiv.org/abs/1909.05858, over the distinct tokens of prompt and answer
- presence and frequency penalty: as OpenAI defines them, over the tokens of the answer
- top-p: https://arxiv.org/abs/1904.09751, the smallest set of most likely tokens whose mass reaches p
- min-p: https://arxiv.org/abs/2407.01082, tokens with at least `min_p` times the probability of the likeliest

A draw takes one number of the request's own generator and inverts the cumulative distribution, so a batch
mate never changes a choice, and noise for a whole vocabulary (0.7 ms a row of 49,152 tokens) is not needed.
Which code path a row takes follows from its own parameters and logits only, for the same reason.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from microkernel.errors import Invalid
from services.inference.engine.constraints import Constraint, constrain
from services.inference.messages import SamplingParams

__all__ = ["NO_TOKEN", "ResolvedSampling", "SamplerState", "resolve", "sample"]

NO_TOKEN = -1  # the choice for a row that has none: NaN or +inf among its logits, or nothing but -inf
GREEDY_BELOW = 1e-5  # a temperature this small would only overflow: it means the likeliest token
BLOCK = 64  # maxima and sums go by block first: 3 us a row of 49,152 tokens; a cumulative sum costs 30 to 300
REACHES = (64, 512)  # how many candidates are sorted before all are: 50, 90 us a row of 49,152, and 230 for all
# More rows at a time than these would take buffers of megabytes, which the C library gives back to the system after
# each use: on a CPU 16 rows at once took 2 to 12 ms, in two halves 1.4.
CPU_ROWS = 8
DRAW_BITS = 48  # at most 1 - 2^-48 of a total stays below that total in float64: a draw always hits a token


class ResolvedSampling(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling parameters with nothing left open, as `resolve` makes them. Fields as in `SamplingParams`."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken without a draw."""
        return self.temperature < GREEDY_BELOW

    @property
    def penalised(self) -> bool:
        """Whether tokens that were seen change the logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


def resolve(params: SamplingParams, *defaults: SamplingParams | None) -> ResolvedSampling:
    """`params`, each None replaced by the first value in `defaults`, or else by that of `ResolvedSampling`.

    Without any seed a fresh one is drawn: it is in the result, so every answer can be replayed. Raises
    `Invalid` that names the field, its value and the range.
    """
    chosen: dict[str, float | int] = {}
    for name, (allowed, fits) in _RANGES.items():
        for source in (params, *defaults):
            value = None if source is None else getattr(source, name)
            if value is None:
                continue
            if not fits(value):
                raise Invalid(f"{name} is {value!r}, allowed is {allowed}", field=name)
            chosen[name] = value
            break
    chosen.setdefault("seed", secrets.randbits(63))
    return msgspec.convert(chosen, ResolvedSampling)


# A comparison with NaN is false, so NaN never fits.
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("0 to 2", lambda value: 0 <= value <= 2),
    "top_k": ("0 (all) to 2147483647", lambda value: 0 <= value < 2**31),
    "top_p": ("0 to 1", lambda value: 0 <= value <= 1),
    "min_p": ("0 to 1", lambda value: 0 <= value <= 1),
    "repetition_penalty": ("more than 0 to 10", lambda value: 0 < value <= 10),
    "presence_penalty": ("-2 to 2", lambda value: -2 <= value <= 2),
    "frequency_penalty": ("-2 to 2", lambda value: -2 <= value <= 2),
    "seed": ("-2^63 to 2^64-1", lambda value: -(2**63) <= value < 2**64),
}


class SamplerState:
    """What one sequence brings to its choices: parameters, generator, and the tokens that penalties look at.

    `prompt_tokens` are ids of the prompt, `device` is where the logits will lie, `constraint` what is demanded beside.
    Not thread-safe: it belongs to the device thread.
    """

    __slots__ = ("_counts", "_ids", "_random", "_slots", "constraint", "device", "draws", "params")

    def __init__(
        self,
        params: ResolvedSampling,
        prompt_tokens: Sequence[int],
        vocab_size: int,
        device: torch.device | str = "cpu",
        constraint: Constraint | None = None,
    ) -> None:
        self.params = params
        self.constraint = constraint
        self.device = torch.device(device)
        self.draws = 0  # how many of its random numbers were taken
        self._random = random.Random(params.seed)  # noqa: S311 - chooses words, guards no secret
        seen: set[int] = set()
        if params.repetition_penalty != 1.0:
            seen = {token for token in prompt_tokens if 0 <= token < vocab_size}
        self._slots = {token: slot for slot, token in enumerate(sorted(seen))}
        room = len(seen) + 64
        self._ids = np.zeros(room, dtype=np.int64)
        self._ids[: len(seen)] = sorted(seen)
        self._counts = np.zeros(room, dtype=np.float32)

    def record(self, token: int) -> None:
        """Count `token` as part of the answer; `sample` does so for the tokens that it chooses."""
        if self.constraint is not None:
            self.constraint.record(token)
        if not self.params.penalised:
            return
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[slot] = token
        self._counts[slot] += 1.0

    def catch_up(self, answer: Sequence[int], draws: int) -> None:
        """Come to where a state was that has chosen `answer` and taken so many random numbers."""
        for token in answer:
            self.record(token)
        while self.draws < draws:
            self.draw()

    def seen(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Distinct tokens that penalties look at (int64), and how often each is in the answer (float32)."""
        return self._ids[: len(self._slots)], self._counts[: len(self._slots)]

    @property
    def complete(self) -> bool:
        """Whether the answer is whole: its grammar lets nothing follow."""
        return self.constraint is not None and self.constraint.complete

    def draw(self) -> float:
        """The next number of the request's own generator, in [0, 1)."""
        self.draws += 1
        return self._random.getrandbits(DRAW_BITS) / (1 << DRAW_BITS)


def sample(logits: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """The next token of each row of `logits` (float32 [batch, vocabulary]): int64 [batch] on the CPU.

    `logits` are left as they are. A chosen token is recorded in the row's state. A row without a choice (NaN,
    +inf, nothing but -inf, or a constraint that allows none: see its `failure`) gets `NO_TOKEN`, and its batch mates
    are not touched by it.
    """
    assert logits.dim() == 2, "logits are [batch, vocabulary]"
    assert logits.shape[0] == len(states), "every row of logits has a state"
    if not states:
        return torch.empty(0, dtype=torch.int64)
    rows = CPU_ROWS if logits.device.type == "cpu" else len(states)
    if len(states) <= rows:
        return _choose(logits, states)
    firsts = range(0, len(states), rows)
    return torch.cat([_choose(logits[first : first + rows], states[first : first + rows]) for first in firsts])


def _choose(logits: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """As `sample`, all rows at once."""
    if any(state.constraint is not None for state in states):
        logits = constrain(logits, [state.constraint for state in states])
    if any(state.params.penalised for state in states):
        logits = _penalise(logits, states)
    drawn = [row for row, state in enumerate(states) if not state.params.greedy]
    if not drawn:
        tokens = _likeliest(logits).cpu()
    elif len(drawn) == len(states):
        tokens = _draw(logits, states).cpu()
    else:
        greedy = [row for row, state in enumerate(states) if state.params.greedy]
        tokens = torch.empty(len(states), dtype=torch.int64, device=logits.device)
        tokens[greedy] = _likeliest(logits[greedy])
        tokens[drawn] = _draw(logits[drawn], [states[row] for row in drawn])
        tokens = tokens.cpu()
    for state, token in zip(states, tokens.tolist(), strict=True):
        if token != NO_TOKEN:
            state.record(token)
    return tokens


def _penalise(logits: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """A copy of `logits` in which seen tokens are changed: one gather and one scatter for all rows."""
    places, counts, factors = [], [], []
    for row, state in enumerate(states):
        if not state.params.penalised:
            continue
        ids, counted = state.seen()
        one = state.params
        strengths = (one.repetition_penalty, one.presence_penalty, one.frequency_penalty)
        places.append(ids + row * logits.shape[1])
        counts.append(counted)
        factors.append(np.tile(np.array(strengths, dtype=np.float32), (len(ids), 1)))
    device = states[0].device
    at = torch.from_numpy(np.concatenate(places)).to(device)
    count = torch.from_numpy(np.concatenate(counts)).to(device)
    factor = torch.from_numpy(np.concatenate(factors)).to(device)
    logits = logits.clone(memory_format=torch.contiguous_format)
    flat = logits.view(-1)
    value = flat[at]
    value = torch.where(value > 0, value / factor[:, 0], value * factor[:, 0])
    flat[at] = value - (count > 0) * factor[:, 1] - count * factor[:, 2]
    return logits


def _likeliest(logits: Tensor) -> Tensor:
    """The index of each row's maximum, the lowest of equals; `NO_TOKEN` where the maximum is not finite."""
    if logits.device.type == "cpu":  # measured: numpy's search takes a tenth of any that torch has, and stops at NaN
        rows = logits.numpy()
        found = rows.argmax(-1)
        return torch.from_numpy(np.where(np.isfinite(rows[np.arange(len(rows)), found]), found, NO_TOKEN))
    blocks = _in_blocks(logits, fill=-torch.inf)
    peak, block = blocks.amax(-1).max(-1)
    within = _take_block(blocks, block).argmax(-1)
    return torch.where(peak.isfinite(), block * BLOCK + within, NO_TOKEN)


def _draw(logits: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """A token of each row by its share after the filters, or `NO_TOKEN`; no row is greedy."""
    device = logits.device
    params = [state.params for state in states]
    temperature = torch.tensor([[one.temperature] for one in params], device=device)
    shares = torch.softmax(logits / temperature, dim=-1)  # NaN throughout a row that has NaN or +inf, or only -inf
    draws = torch.tensor([[state.draw()] for state in states], dtype=torch.float64, device=device)
    limits = [_Limits.of(one, logits.shape[1]) for one in params]
    tokens = torch.empty(len(states), dtype=torch.int64, device=device)

    whole = [row for row, limit in enumerate(limits) if limit.reach == 0]
    if whole:
        tokens[whole] = _draw_whole(_take(shares, whole), draws[whole], [limits[row] for row in whole])
    for reach in REACHES:
        rows = [row for row, limit in enumerate(limits) if limit.reach == reach < logits.shape[1]]
        if not rows:
            continue
        share, token = _take(shares, rows).topk(reach, dim=-1)
        tokens[rows], short = _draw_sorted(share, token, draws[rows], [limits[row] for row in rows], logits.shape[1])
        for row, again in zip(rows, short, strict=True):
            if again:
                limits[row] = limits[row].wider(logits.shape[1])
    for row, limit in enumerate(limits):  # seldom, and alone they stay in the processor's cache
        if limit.reach == logits.shape[1]:
            share, token = _sort(shares[row])
            tokens[row], _ = _draw_sorted(share, token, draws[row : row + 1], [limit], logits.shape[1])
    return tokens


def _take(values: Tensor, rows: list[int]) -> Tensor:
    """`values[rows]`, without a copy when that is all of them (rows ascend)."""
    return values if len(rows) == values.shape[0] else values[rows]


class _Limits(msgspec.Struct, frozen=True):
    """A row's filters. `reach` is how many of its likeliest tokens are sorted; 0: the row needs no order."""

    reach: int
    top_k: int
    top_p: float
    min_p: float

    @staticmethod
    def of(params: ResolvedSampling, vocab_size: int) -> _Limits:
        top_k = params.top_k if 0 < params.top_k < vocab_size else 0
        if top_k == 0 and params.top_p >= 1.0:
            return _Limits(0, 0, 1.0, params.min_p)
        reach = _reach_of(max(top_k, 1), vocab_size)
        return _Limits(reach, top_k, params.top_p, params.min_p)

    def wider(self, vocab_size: int) -> _Limits:
        return msgspec.structs.replace(self, reach=_reach_of(self.reach + 1, vocab_size))


def _reach_of(count: int, vocab_size: int) -> int:
    """The step of `REACHES` that covers `count` tokens: steps keep the sort of a row free of its batch."""
    return next((reach for reach in REACHES if count <= reach < vocab_size), vocab_size)


def _draw_whole(shares: Tensor, draws: Tensor, limits: Sequence[_Limits]) -> Tensor:
    """Draw among all tokens, min-p apart, in the order of their ids: first a block, then a token of it."""
    if any(limit.min_p > 0 for limit in limits):
        floor = torch.tensor([[limit.min_p] for limit in limits], device=shares.device)
        shares = shares.masked_fill(shares < shares.amax(-1, keepdim=True) * floor, 0.0)
    blocks = _in_blocks(shares, fill=0.0)
    sums = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    total = sums[:, -1:]
    target = draws * total
    block = _first_above(sums, target)
    before = functional.pad(sums, (1, 0)).gather(1, block)
    within = _take_block(blocks, block.squeeze(1)).cumsum(-1, dtype=torch.float64)
    token = block * BLOCK + _first_above(within, target - before)
    return torch.where(total.isfinite(), token, NO_TOKEN).squeeze(1)


def _sort(shares: Tensor) -> tuple[Tensor, Tensor]:
    """All tokens of one row, likeliest first, the lowest of equals: their shares and ids, both [1, vocabulary].

    Shares are not negative, so their bits sort as they do: numpy sorts bits and id packed into one integer, ten times
    faster than torch sorts floats and carries their places along.
    """
    if shares.device.type != "cpu":
        order = torch.sort(shares[None], dim=-1, descending=True, stable=True)
        return order.values, order.indices
    low = (1 << 32) - 1
    keys = (shares.numpy().view(np.int32).astype(np.int64) << 32) | (low - np.arange(len(shares)))
    keys.sort()
    keys = keys[::-1]
    share = (keys >> 32).astype(np.int32).view(np.float32)
    return torch.from_numpy(share)[None], torch.from_numpy(low - (keys & low))[None]


def _draw_sorted(
    share: Tensor, token: Tensor, draws: Tensor, limits: Sequence[_Limits], vocab_size: int
) -> tuple[Tensor, list[bool]]:
    """Draw among the likeliest tokens; also say which rows need more of them sorted to know the top-p set.

    `share` and `token` are [rows, reach], likeliest first.
    """
    device = share.device
    reach = share.shape[1]
    opened = [limit.top_k == 0 and reach < vocab_size for limit in limits]
    top_k = torch.tensor([[limit.top_k or reach] for limit in limits], device=device)
    top_p = torch.tensor([[limit.top_p] for limit in limits], dtype=torch.float64, device=device)
    min_p = torch.tensor([[limit.min_p] for limit in limits], device=device)

    mass = share.cumsum(-1, dtype=torch.float64)
    of_k = mass.gather(1, top_k - 1)
    open_ended = torch.tensor(opened, device=device)[:, None]
    wanted = top_p * torch.where(open_ended, 1.0, of_k)
    short = open_ended & (mass[:, -1:] < wanted)

    # Each filter keeps a beginning of the sorted tokens, so together they keep the shortest; at least one
    # token.
    by_mass = torch.searchsorted(mass, wanted) + 1  # the first token at which the mass is reached is kept
    by_floor = (share >= share[:, :1] * min_p).sum(-1, keepdim=True)
    kept = torch.minimum(torch.minimum(by_mass, by_floor), top_k).clamp_(min=1)
    total = mass.gather(1, kept - 1)
    place = torch.minimum(_first_above(mass, draws * total), kept - 1)
    chosen = torch.where(total.isfinite(), token.gather(1, place), NO_TOKEN)
    return chosen.squeeze(1), short.squeeze(1).tolist() if any(opened) else opened  # a device is asked once less


def _in_blocks(values: Tensor, *, fill: float) -> Tensor:
    """[batch, vocabulary] as [batch, blocks, BLOCK]: a view if the vocabulary divides, padded otherwise."""
    over = values.shape[1] % BLOCK
    if over:
        values = functional.pad(values, (0, BLOCK - over), value=fill)
    return values.reshape(values.shape[0], -1, BLOCK)


def _take_block(blocks: Tensor, block: Tensor) -> Tensor:
    """Of each row of `blocks` the one that `block` (int64 [batch]) names: [batch, BLOCK]."""
    return blocks.gather(1, block[:, None, None].expand(-1, 1, BLOCK)).squeeze(1)


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """[batch, 1] indices of the first entry over `target`, never past the last one that adds mass.

    Rows of NaN give some index that is in range.
    """
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    above = torch.searchsorted(cumulative, target, right=True)
    return torch.minimum(above, last).clamp_(max=cumulative.shape[1] - 1)
