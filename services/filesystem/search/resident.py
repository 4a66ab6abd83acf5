"""The vectors of a volume in memory: read from its tables when they are first asked for, and asked on a device.

They stay until the service stops; `memory` knows how much they take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from microkernel.errors import NotFound, Overloaded, Unavailable
from microkernel.executor import Executor
from microkernel.message import convert
from microkernel.service import Service
from services.filesystem.search import table
from services.filesystem.search.vectors import Ranking, Vectors
from services.filesystem.stored.sight import Sight
from services.filesystem.stored.volume import StoredVolume
from services.memory.messages import Reservation

__all__ = ["ResidentVectors"]

T = TypeVar("T")

DEVICE = "cpu0"
STEP = 64 << 20  # bytes by which the reservation grows


class ResidentVectors:
    """The vectors of one volume."""

    def __init__(self, service: Service, volume: StoredVolume) -> None:
        self._service = service
        self._volume = volume
        self._vectors = Vectors()
        self._model: str | None = None
        self._is_loaded = False
        self._reservation: Reservation | None = None
        # Two that load at once would have everything twice; who waits has nothing else to do.
        self._loading = asyncio.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self._vectors.nbytes

    async def model(self) -> str | None:
        """The model that made them; None as long as there are none."""
        await self._load()
        return self._model

    async def add(self, content: int, vectors: list[bytes], model: str | None) -> None:
        """Those of a content's pieces, float16 each."""
        await self._load()
        self._model = model
        pieces = [(content, number) for number in range(len(vectors))]
        await self._on_device(self._vectors.add, pieces, b"".join(vectors))
        await self._account()

    async def rank(self, query: bytes) -> Ranking:
        """How near all are to a query, which is float32."""
        await self._load()
        return await self._on_device(self._vectors.rank, query)

    async def nearest(self, ranking: Ranking, count: int) -> list[tuple[int, int, float]]:
        """The first ones of a ranking."""
        return await self._on_device(ranking.nearest, count)

    async def forget(self) -> None:
        """All are of a model that is not asked any more."""
        self._vectors, self._model = Vectors(), None
        await self._account()

    async def _load(self) -> None:
        async with self._loading:
            if self._is_loaded:
                return
            self._model = await self._volume.look(lambda sight: table.model_of(sight.names.db))
            after = (-1, -1)
            while True:
                kept = await self._volume.look(partial(_kept, after))
                if not kept.contents:
                    break
                pieces = list(zip(kept.contents, kept.numbers, strict=True))
                await self._on_device(self._vectors.add, pieces, kept.vectors)
                after = pieces[-1]
            self._is_loaded = True
        await self._account()

    async def _on_device(self, work: Callable[..., T], *arguments: Any) -> T:
        executor: Executor = self._service.executor(DEVICE)
        return await executor.run(work, *arguments)

    async def _account(self) -> None:
        """Have the memory reserved that they take, where there is somebody who counts."""
        needed = -(-self._vectors.nbytes // STEP) * STEP
        if (0 if self._reservation is None else self._reservation.bytes) == needed:
            return
        try:
            if self._reservation is None:
                answer = await self._service.call("memory.reserve", purpose="search by meaning", bytes=needed)
            else:
                answer = await self._service.call("memory.resize", id=self._reservation.id, bytes=needed)
            self._reservation = convert(answer, Reservation)
        except (NotFound, Unavailable, Overloaded) as error:
            self._service.log.warning("the memory of the search index is not counted: %s", error.message)


def _kept(after: tuple[int, int], sight: Sight) -> table.Kept:
    return table.kept(sight.names.db, after)
