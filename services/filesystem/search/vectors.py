"""The vectors of all pieces in memory, and the nearest ones to a query: every one is compared (hot: once a query).

On a device thread. In float32: of 100,000 pieces with 384 numbers each, 154 MB are read for an answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["Ranking", "Vectors"]

CHUNK = 16_384  # pieces in one matrix: what is added copies no more than that


class Vectors:
    """Unit vectors of pieces, each known by its content and its number in it."""

    def __init__(self) -> None:
        self._full: list[torch.Tensor] = []  # [CHUNK, dimensions] float32
        self._last: torch.Tensor | None = None  # the same, of which `_used` rows are
        self._used = 0
        self._pieces: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(chunk.nbytes for chunk in self._full) + (0 if self._last is None else self._last.nbytes)

    def add(self, pieces: Sequence[tuple[int, int]], vectors: bytes | bytearray) -> None:
        """Put pieces in; `vectors` are float16 [pieces, dimensions]."""
        if not pieces:
            return
        matrix = torch.frombuffer(bytearray(vectors), dtype=torch.float16).view(len(pieces), -1).float()
        self._pieces += pieces
        while len(matrix):
            if self._last is None:
                self._last, self._used = torch.empty(CHUNK, matrix.shape[1]), 0
            taken = matrix[: CHUNK - self._used]
            self._last[self._used : self._used + len(taken)] = taken
            self._used += len(taken)
            matrix = matrix[len(taken) :]
            if self._used == CHUNK:
                self._full.append(self._last)
                self._last = None

    def rank(self, query: bytes) -> Ranking:
        """How near all pieces are to a query, which is float32 [dimensions]."""
        vector = torch.frombuffer(bytearray(query), dtype=torch.float32)
        scores = [chunk @ vector for chunk in self._full]
        if self._last is not None:
            scores.append(self._last[: self._used] @ vector)
        return Ranking(torch.cat(scores) if scores else torch.empty(0), self._pieces)


class Ranking:
    """Pieces by how near they are to one query."""

    def __init__(self, scores: torch.Tensor, pieces: list[tuple[int, int]]) -> None:
        self._scores = scores
        self._pieces = pieces

    def nearest(self, count: int) -> list[tuple[int, int, float]]:
        """The `count` nearest: content, number, cosine; the nearest first."""
        found = self._scores.topk(min(count, len(self._scores)))
        return [
            (*self._pieces[place], score)
            for place, score in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        ]
