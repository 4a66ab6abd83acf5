"""The vectors of all pieces in memory, and the nearest ones to a query: every one is compared (hot: once a query).

On a device thread. What takes the time is to read the vectors, so they are read with 8 bits a number, a quarter of what
float32 takes. What that leaves out of a vector is known, and so is by how much its cosine can be off: whoever could be
among the nearest is compared again with all its bits. The answer is the one that comparing all of those gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["Ranking", "Vectors"]

CHUNK = 16_384  # pieces in one matrix: what is added copies no more than that
LEVELS = 127  # of a number in 8 bits, with a sign
ROUNDING = 1e-5  # that float32 may be off by in a sum of some hundred products of numbers below one


class _Chunk:
    """Vectors one below the other, `used` of them."""

    def __init__(self, dimensions: int) -> None:
        self.used = 0
        self.exact = torch.empty(CHUNK, dimensions, dtype=torch.float16)
        self.levels = torch.empty(CHUNK, dimensions, dtype=torch.int8)
        self.scale = torch.empty(CHUNK)  # what one level is worth
        self.length = torch.empty(CHUNK)  # of what the levels say of a vector
        self.left_out = torch.empty(CHUNK)  # length of what they leave out

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in (self.exact, self.levels, self.scale, self.length, self.left_out))

    def add(self, exact: torch.Tensor) -> int:
        """Take in as many as there is room for; returns how many."""
        taken = exact[: CHUNK - self.used]
        rows = slice(self.used, self.used + len(taken))
        vectors = taken.float()
        levels, scale = _in_levels(vectors)
        self.exact[rows] = taken
        self.levels[rows] = levels
        self.scale[rows] = scale
        said = levels * scale[:, None]
        self.length[rows] = said.norm(dim=1)
        self.left_out[rows] = (vectors - said).norm(dim=1)
        self.used += len(taken)
        return len(taken)


class Vectors:
    """Unit vectors of pieces, each known by its content and its number in it."""

    def __init__(self) -> None:
        self._chunks: list[_Chunk] = []
        self._pieces: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(chunk.nbytes for chunk in self._chunks)

    def add(self, pieces: Sequence[tuple[int, int]], vectors: bytes | bytearray) -> None:
        """Put pieces in; `vectors` are float16 [pieces, dimensions]."""
        if not pieces:
            return
        exact = torch.frombuffer(bytearray(vectors), dtype=torch.float16).view(len(pieces), -1)
        exact = exact.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # near to nothing, and in nobody's way
        self._pieces += pieces
        while len(exact):
            if not self._chunks or self._chunks[-1].used == CHUNK:
                self._chunks.append(_Chunk(exact.shape[1]))
            exact = exact[self._chunks[-1].add(exact) :]

    def rank(self, query: bytes) -> Ranking:
        """How near all pieces are to a query, which is float32 [dimensions]."""
        return Ranking(self._chunks, self._pieces, torch.frombuffer(bytearray(query), dtype=torch.float32))


class Ranking:
    """Pieces by how near they are to one query: of those that were there when it was asked.

    With a vector v = a + b and the query q = c + d, where a and c are what the levels say of them, their product is
    a c + a d + b q: it is off from a c by no more than |a| |d| + |b| |q|.
    """

    def __init__(self, chunks: list[_Chunk], pieces: list[tuple[int, int]], query: torch.Tensor) -> None:
        self._chunks = [*chunks]
        self._pieces = pieces
        self._query = query
        levels, worth = _in_levels(query[None])
        left_out = float((query - levels[0] * worth).norm())
        length = float(query.norm())
        about, off = [torch.empty(0)], [torch.empty(0)]
        for chunk in chunks:
            rows = slice(chunk.used)
            products = torch._int_mm(chunk.levels[rows], levels.T)  # noqa: SLF001 - int32 [pieces, 1]; it has no public name
            about.append(products[:, 0] * chunk.scale[rows] * worth)
            off.append(chunk.length[rows] * left_out + chunk.left_out[rows] * length)
        self._about = torch.cat(about)
        self._off = torch.cat(off).add_(ROUNDING * length)

    def nearest(self, count: int) -> list[tuple[int, int, float]]:
        """The `count` nearest: content, number, cosine; the nearest first."""
        count = min(count, len(self._about))
        if count == 0:
            return []
        sure = (self._about - self._off).topk(count).values[-1]  # so near are as many as that at least
        places = (self._about + self._off >= sure).nonzero()[:, 0]
        found = self._exact(places).topk(count)
        return [
            (*self._pieces[place], score)
            for place, score in zip(places[found.indices].tolist(), found.values.tolist(), strict=True)
        ]

    def _exact(self, places: torch.Tensor) -> torch.Tensor:
        """Cosines of some pieces, whose places rise: float32 [places]."""
        bounds = torch.arange(1, len(self._chunks) + 1) * CHUNK
        parts = torch.tensor_split(places, torch.searchsorted(places, bounds)[:-1])
        return torch.cat(
            [
                chunk.exact[part - number * CHUNK].float() @ self._query
                for number, (chunk, part) in enumerate(zip(self._chunks, parts, strict=True))
            ]
        )


def _in_levels(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [vectors, dimensions], and what a level of each is worth: float32 [vectors]."""
    scale = (vectors.abs().amax(dim=1) / LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
    return (vectors / scale[:, None]).round_().to(torch.int8), scale
