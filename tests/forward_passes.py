"""Ways to run a decoder over given tokens, without an engine."""

from __future__ import annotations

import torch

from services.inference.cache.keys import PAGE
from services.inference.engine.forward import Decoder, Part, Storage


class Lane:
    """One sequence with pages of its own, in a storage that other lanes may share."""

    def __init__(
        self,
        decoder: Decoder,
        storage: Storage | None = None,
        *,
        first: int = 0,
        length: int = 1024,
        adapter: int | None = None,
    ) -> None:
        pages = -(-length // PAGE)
        self.storage = storage or decoder.storage(first + pages)
        self.length = 0
        self.adapter = adapter
        self._table = self.storage.table(range(first, first + pages))

    def part(self, tokens: list[int], wanted: int | None = None) -> Part:
        """The next `tokens`, as part of a step; with the logits of all, or of the last `wanted`."""
        part = Part(list(tokens), self.length, self._table, len(tokens) if wanted is None else wanted, self.adapter)
        self.length += len(tokens)
        return part


def lanes(decoder: Decoder, count: int, *, length: int = 1024) -> list[Lane]:
    """Sequences in one storage."""
    pages = -(-length // PAGE)
    storage = decoder.storage(count * pages)
    return [Lane(decoder, storage, first=number * pages, length=length) for number in range(count)]


def in_chunks(
    decoder: Decoder, tokens: list[int], chunk: int | None = None, *, adapter: int | None = None
) -> torch.Tensor:
    """Logits [n, vocabulary] after each token, read as a prompt in chunks of `chunk`."""
    lane, step = Lane(decoder, adapter=adapter), chunk or len(tokens)
    return torch.cat(
        [
            decoder.forward(lane.storage, [lane.part(tokens[start : start + step])])
            for start in range(0, len(tokens), step)
        ]
    )


def one_by_one(decoder: Decoder, tokens: list[int]) -> torch.Tensor:
    """Logits [n, vocabulary] after each token, as if each had been generated."""
    return in_chunks(decoder, tokens, 1)
