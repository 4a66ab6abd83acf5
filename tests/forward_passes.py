"""Ways to run a decoder over given tokens, without an engine."""

from __future__ import annotations

import torch

from services.inference.eager.attention import Decode, Prefill
from services.inference.eager.decoder import Decoder
from services.inference.eager.kv_cache import KVCache


def new_cache(decoder: Decoder, *, slots: int = 1, length: int = 1024) -> KVCache:
    """A cache of its own, with room reserved."""
    cache = KVCache(
        decoder.config,
        max_slots=slots,
        max_length=length,
        max_tokens=slots * length,
        device=decoder.device,
        dtype=decoder.dtype,
    )
    cache.reserve(slots, length)
    return cache


def in_chunks(decoder: Decoder, tokens: list[int], chunk: int | None = None) -> torch.Tensor:
    """Logits [n, vocabulary] after each token, read as a prompt in chunks of `chunk`."""
    cache, step, logits = new_cache(decoder), chunk or len(tokens), []
    for start in range(0, len(tokens), step):
        part = torch.tensor(tokens[start : start + step])
        logits.append(decoder.forward(part, Prefill(cache, 0, start, len(part), decoder.device)))
    return torch.cat(logits)


def one_by_one(decoder: Decoder, tokens: list[int]) -> torch.Tensor:
    """Logits [n, vocabulary] after each token, as if each had been generated."""
    cache = new_cache(decoder)
    return torch.cat(
        [
            decoder.forward(torch.tensor([token]), Decode(cache, [position], decoder.device))
            for position, token in enumerate(tokens)
        ]
    )
