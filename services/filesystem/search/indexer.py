"""Keeps the index up with the files, as background work: what is new is read, cut, embedded and kept.

What was kept is never done twice; after a crash the files tell what is missing.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from functools import partial

import numpy as np

from microkernel.errors import DataLoss, MicrokernelError, NotFound, Overloaded, Unavailable
from microkernel.message import convert
from microkernel.service import Service
from services.filesystem.messages import Change
from services.filesystem.paths import ROOT, TreePath
from services.filesystem.search import table
from services.filesystem.search.pieces import Piece, pieces_of, text_in
from services.filesystem.search.resident import ResidentVectors
from services.filesystem.stored.database import Entry
from services.filesystem.stored.sight import Sight
from services.filesystem.stored.volume import StoredVolume
from services.inference.messages import Embeddings

__all__ = ["Indexer"]

LARGEST = 8 << 20  # bytes of a file that is indexed
TOGETHER = 512  # pieces that are embedded by one call
AGAIN = 5.0  # seconds until a model that cannot be asked is asked again
MOST_ERRORS = 1000  # contents that could not be indexed, and are not tried again before a restart


class Indexer:
    """The background work of one volume's index."""

    def __init__(self, service: Service, volume: StoredVolume, vectors: ResidentVectors) -> None:
        """`service` is whose calls embed."""
        self._service = service
        self._volume = volume
        self._vectors = vectors
        self._waiting: dict[int, TreePath] = {}  # contents, with a path for errors
        self._places: list[TreePath] = []  # where to look for more
        self._failed: set[int] = set()
        self._wake = asyncio.Event()
        self.why = ""
        self._is_busy = False

    @property
    def waiting(self) -> int:
        """Contents that are known to wait."""
        return len(self._waiting) + len(self._places) + self._is_busy

    def look(self, path: TreePath) -> None:
        """Something is new at a path, or below it."""
        if not any(path.is_within(place) for place in self._places):
            self._places.append(path)
        self._wake.set()

    def changed(self, change: Change) -> None:
        """Something has changed; `look` for what is to be read."""
        if change.action != "removed":
            self.look(TreePath(tuple(name for name in change.path.split("/") if name)))

    async def run(self) -> None:
        """Index what there is, and what comes, until cancelled."""
        self.look(ROOT)
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._places or self._waiting:
                self._is_busy = True
                try:
                    await self._find()
                    await self._index()
                except (NotFound, Unavailable, Overloaded) as error:
                    self.why = f"the embedding model cannot be asked: {error.message}"
                    await asyncio.sleep(AGAIN)
                else:
                    self.why = ""
                finally:
                    self._is_busy = False

    async def _find(self) -> None:
        """Which contents are new in the places where something has changed."""
        while self._places:
            place = self._places.pop()

            def work(sight: Sight, place: TreePath = place) -> list[Entry]:
                return list(table.wanting(sight.names, self._volume.inside(place)))

            for entry in await self._volume.look(work):
                assert entry.content is not None
                if entry.content not in self._failed:
                    self._waiting[entry.content] = place

    async def _index(self) -> None:
        """A few contents: read, cut, embedded, kept."""
        taken: list[tuple[int, list[Piece]]] = []
        count = 0
        while self._waiting and count < TOGETHER:
            content, place = next(iter(self._waiting.items()))
            pieces = await self._pieces(content, place)
            taken.append((content, pieces))
            count += len(pieces)
            del self._waiting[content]
        if not taken:
            return  # not even the vectors are read, for nothing
        try:
            await self._embed(taken)
        except MicrokernelError:
            self._waiting |= dict.fromkeys((content for content, _ in taken), ROOT)
            raise

    async def _pieces(self, number: int, place: TreePath) -> list[Piece]:
        """What a content says; nothing for what is no text, too large, or damaged."""
        content = await self._volume.content(number)
        if content is None or content.size > LARGEST:
            return []
        try:
            async with aclosing(self._volume.streams.give_out(content, 0, None, place)) as read:
                body = b"".join([piece async for piece in read])
        except (DataLoss, NotFound):
            if len(self._failed) < MOST_ERRORS:
                self._failed.add(number)
            return []
        return await asyncio.to_thread(_cut, body)

    async def _embed(self, taken: list[tuple[int, list[Piece]]]) -> None:
        texts = [piece.text for _, pieces in taken for piece in pieces]
        rows: list[bytes] = []
        model = await self._vectors.model()
        for first in range(0, len(texts), TOGETHER):
            answer = convert(
                await self._service.call("inference.embed", texts=texts[first : first + TOGETHER], deadline=3600.0),
                Embeddings,
            )
            if model is not None and answer.model != model:
                await self._begin_again()
                return
            model = answer.model
            matrix = np.frombuffer(answer.vectors.view(), dtype=np.float32).reshape(answer.vectors.shape)
            rows += [row.tobytes() for row in matrix.astype(np.float16)]
        place = 0
        for content, pieces in taken:
            vectors = rows[place : place + len(pieces)]
            place += len(pieces)
            if await self._volume.change(
                partial(table.keep, content=content, model=model or "", pieces=pieces, vectors=vectors)
            ):
                await self._vectors.add(content, vectors, model)

    async def _begin_again(self) -> None:
        """Another model makes other vectors: all are made anew."""
        await self._volume.change(table.forget_all)
        await self._vectors.forget()
        self._waiting.clear()
        self.look(ROOT)


def _cut(body: bytes) -> list[Piece]:
    text = text_in(body)
    return [] if text is None else pieces_of(text)
