"""Hot, once a step on the device thread: what a request demands of its tokens beside likelihood, as changes of logits.

A grammar allows some tokens and no others, `min_tokens` forbids those that would end the answer, and `logit_bias` makes
some more or less likely. All rows that demand something are changed together: bits of what is allowed become zeros and
infinities that are added in one pass, and biases go in one scatter. They come before penalties and filters, as in vLLM,
so that those see only what may be chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from microkernel.errors import Invalid, MicrokernelError
from services.inference.grammar.matcher import CompiledGrammar

__all__ = ["Constraint", "constrain"]


class Constraint:
    """What one answer's tokens must be. Belongs to the device thread."""

    __slots__ = ("_bias", "_matcher", "_min_tokens", "_stops", "failure", "generated")

    def __init__(
        self,
        *,
        stop_tokens: Collection[int] = (),
        min_tokens: int = 0,
        logit_bias: Iterable[tuple[int, float]] = (),
        grammar: CompiledGrammar | None = None,
        answer: Sequence[int] = (),
    ) -> None:
        """`stop_tokens` end the answer: not before `min_tokens`, and only where the grammar's text may end.

        `answer` are tokens that were generated before, as when a context is restored.
        """
        self._stops = np.array(sorted(stop_tokens), dtype=np.int64)
        self._min_tokens = min_tokens
        self._bias = dict(logit_bias)
        self._matcher = None if grammar is None else grammar.start(answer)
        self.generated = len(answer)
        self.failure: MicrokernelError | None = None  # why this answer cannot go on

    @property
    def complete(self) -> bool:
        """Whether the answer fits its grammar and nothing may follow."""
        return self._matcher is not None and self._matcher.complete

    @property
    def masks(self) -> bool:
        """Whether only some tokens are allowed."""
        return self._matcher is not None

    def record(self, token: int) -> None:
        """Count `token` as the answer's next."""
        self.generated += 1
        if self._matcher is not None and token not in self._stops:
            self._matcher.advance(token)

    def allow(self, bits: NDArray[np.uint8]) -> None:
        """Set the bit of each allowed token, lowest first; none where the answer cannot go on (see `failure`)."""
        assert self._matcher is not None
        try:
            may_end = self._matcher.fill(bits)
        except Invalid as error:
            bits[:] = 0
            self.failure = error
            return
        byte, bit = self._stops >> 3, np.uint8(1) << (self._stops & 7).astype(np.uint8)
        np.bitwise_and.at(bits, byte, ~bit)
        others = bool(bits.any())
        if may_end and not (others and self.generated < self._min_tokens):
            np.bitwise_or.at(bits, byte, bit)
        if not bits.any():
            why = "nothing but the end, for which there is no token," if may_end else "nothing"
            self.failure = Invalid(f"the grammar allows {why} after what was generated", field="grammar")

    def added(self) -> tuple[list[int], list[float]]:
        """Tokens, each once, and what is added to their logits."""
        bias = self._bias
        if self._matcher is None and self.generated < self._min_tokens:
            bias = bias | dict.fromkeys(self._stops.tolist(), -torch.inf)
        return list(bias), list(bias.values())


def constrain(logits: Tensor, constraints: Sequence[Constraint | None]) -> Tensor:
    """A copy of `logits` (float32 [batch, vocabulary]) as the rows' constraints have it; other rows keep their bits."""
    logits = logits.clone(memory_format=torch.contiguous_format)
    masked = [(row, one) for row, one in enumerate(constraints) if one is not None and one.masks]
    if masked:
        _mask(logits, masked)
    places: list[int] = []
    values: list[float] = []
    for row, one in enumerate(constraints):
        if one is not None:
            tokens, added = one.added()
            places += [row * logits.shape[1] + token for token in tokens]
            values += added
    if places:
        logits.view(-1)[torch.tensor(places, device=logits.device)] += torch.tensor(values, device=logits.device)
    return logits


def _mask(logits: Tensor, masked: Sequence[tuple[int, Constraint]]) -> None:
    """Make the logits of all tokens that are not allowed minus infinity; NaN stays what it is."""
    vocab_size = logits.shape[1]
    bits = np.zeros((len(masked), -(-vocab_size // 8)), dtype=np.uint8)
    for place, (_, constraint) in enumerate(masked):
        constraint.allow(bits[place])
    added = _added_by(torch.from_numpy(bits).to(logits.device))[:, :vocab_size]
    logits.index_add_(0, torch.tensor([row for row, _ in masked], device=logits.device), added)


def _added_by(bits: Tensor) -> Tensor:
    """Of bits (uint8 [rows, bytes], lowest first) what is added to logits: float32 [rows, 8 * bytes].

    Looked up by bytes, on whichever device: a fifth of the time of unpacking and filling, and only bits have to cross.
    """
    return functional.embedding(bits.int(), _ADDED_BY_BYTE.to(bits.device)).flatten(1)


_ADDED_BY_BYTE = torch.from_numpy(
    np.where(
        np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), np.float32(0), -np.inf
    ).astype(np.float32)
)
