"""Hot, once a step on the device thread: how likely chosen tokens were, and which others were likeliest.

Of the model's own logits, before constraints, penalties and temperature, as OpenAI and vLLM have it by default: what
the model thinks does not depend on how it is asked to choose.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor

from microkernel.errors import MicrokernelError

__all__ = ["MOST", "Logprobs", "take"]

MOST = 20  # alternatives at most, as OpenAI has it
LEAST = -9999.0  # stands for the logarithm of nothing, which is no JSON; as OpenAI has it


class Logprobs(msgspec.Struct, frozen=True):
    """The chosen token's log-probability, and the likeliest tokens with theirs, likeliest first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def take(
    logits: Tensor, tokens: Sequence[int | MicrokernelError], counts: Sequence[int | None]
) -> list[Logprobs | None]:
    """Of each row of `logits` (float32 [rows, vocabulary]): the chosen one of `tokens` and `counts` alternatives.

    None for a row whose count is None, and for one that got an error instead of a token. The results cross from the
    device in one piece.
    """
    rows = [
        row
        for row, (token, count) in enumerate(zip(tokens, counts, strict=True))
        if count is not None and isinstance(token, int)
    ]
    result: list[Logprobs | None] = [None] * len(counts)
    if not rows:
        return result
    asked = logits if len(rows) == logits.shape[0] else logits[rows]
    total = asked.logsumexp(-1, keepdim=True)
    chosen = torch.tensor([[tokens[row]] for row in rows], device=logits.device)
    parts = [(asked.gather(1, chosen) - total).double()]
    # Always as many, since which of equals are taken may depend on how many: a batch mate must not decide that.
    most = min(MOST, logits.shape[1]) if any(counts[row] for row in rows) else 0
    if most:
        top = asked.topk(most, dim=-1)
        parts += [(top.values - total).double(), top.indices.double()]  # an id is exact in a double
    for row, (own, *others) in zip(rows, torch.cat(parts, dim=1).tolist(), strict=True):
        count = min(counts[row] or 0, most)
        best = zip(map(int, others[most:]), others[:most], strict=True)
        result[row] = Logprobs(
            max(own, LEAST), tuple((token, max(value, LEAST)) for token, value in list(best)[:count])
        )
    return result
