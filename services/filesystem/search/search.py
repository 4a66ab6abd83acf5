"""Answers searches: by meaning, over what is indexed, and by pattern, over what is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

import msgspec

from microkernel.errors import DataLoss, Invalid, NotFound, PreconditionFailed
from microkernel.message import convert
from microkernel.service import Service
from services.filesystem.messages import Change, Found, Grep, IndexState, Match, Search
from services.filesystem.paths import TreePath
from services.filesystem.search import table
from services.filesystem.search.grep import LARGEST, Pattern
from services.filesystem.search.indexer import Indexer
from services.filesystem.search.resident import ResidentVectors
from services.filesystem.stored.access import Rights
from services.filesystem.stored.contents import Content
from services.filesystem.stored.database import TOP, Entry
from services.filesystem.stored.names import Way
from services.filesystem.stored.sight import Sight
from services.filesystem.stored.volume import StoredVolume
from services.inference.messages import Embeddings
from services.scheduler.messages import ProcessClass

__all__ = ["Searches"]

MOST = 1000  # results of one search
LONGEST_QUERY = 8192  # characters
FIRST = 4  # nearest pieces that are looked at for each result that is asked for, before more are


class _Hit(msgspec.Struct, frozen=True):
    """A piece, where it is, and the file that has it."""

    way: Way
    content: Content
    start: int
    stop: int
    score: float


class Searches:
    """What is searched in one volume."""

    def __init__(self, service: Service, volume: StoredVolume) -> None:
        self._service = service
        self._volume = volume
        self._vectors = ResidentVectors(service, volume)
        self._indexer = Indexer(service, volume, self._vectors)
        self._folders: dict[int, TreePath] = {}

    async def start(self) -> None:
        """Go on with what was being indexed."""
        self._folders = await self._volume.look(lambda sight: table.indexed(sight.names))
        self._service.spawn(self._indexer.run(), name="index")

    def changed(self, change: Change) -> None:
        """Something has changed in the volume."""
        if self._folders:
            self._indexer.changed(change)

    async def index(self, path: TreePath, *, is_indexed: bool) -> IndexState:
        """Have a folder indexed, or not any more. Raises `NotFound`."""
        inside = self._volume.inside(path)
        await self._volume.change(partial(table.mark, path=inside, is_indexed=is_indexed))
        self._indexer.look(path)
        return await self.state()

    async def state(self) -> IndexState:
        """What is indexed, and what waits."""
        self._folders = await self._volume.look(lambda sight: table.indexed(sight.names))
        model = await self._volume.look(lambda sight: table.model_of(sight.names.db))
        return IndexState(
            folders=tuple(sorted(str(self._volume.outside(path)) for path in self._folders.values())),
            pieces=await self._volume.look(lambda sight: table.count_of(sight.names.db)),
            bytes=self._vectors.nbytes,
            waiting=self._indexer.waiting,
            model=model,
            why=self._indexer.why,
        )

    async def search(self, asked: Search, path: TreePath, user: str | None) -> list[Found]:
        """The pieces that are nearest to a query, of files that a user may read.

        Raises `PreconditionFailed` where nothing is indexed.
        """
        if not asked.query.strip() or len(asked.query) > LONGEST_QUERY:
            raise Invalid(f"a query has 1 to {LONGEST_QUERY} characters", field="query")
        if not 1 <= asked.limit <= MOST:
            raise Invalid(f"limit is {asked.limit}, allowed is 1 to {MOST}", field="limit")
        self._folders = await self._volume.look(lambda sight: table.indexed(sight.names))
        if not self._folders:
            raise PreconditionFailed("no folder is indexed", remedy="mk fs index FOLDER")
        answer = convert(
            await self._service.call("inference.embed", texts=[asked.query], process_class=ProcessClass.INTERACTIVE),
            Embeddings,
        )
        ranking = await self._vectors.rank(bytes(answer.vectors))
        count = FIRST * asked.limit
        while True:
            nearest = await self._vectors.nearest(ranking, count)
            hits = await self._volume.look(partial(self._hits, asked, path, nearest), user)
            if len(hits) >= asked.limit or len(nearest) < count:
                break
            count *= 4
        return [found for hit in hits if (found := await self._found(hit)) is not None]

    async def grep(self, asked: Grep, path: TreePath, user: str | None) -> AsyncGenerator[Match, None]:
        """Lines that have a pattern, file by file. Raises `NotFound`, and `Invalid` for what is no pattern."""
        pattern = Pattern(asked.pattern, ignore_case=asked.ignore_case, literal=asked.literal)
        left = asked.limit
        for way, content in await self._volume.look(partial(self._readable, path), user):
            where = self._volume.outside(TreePath(tuple(entry.name for entry in way)))
            try:
                async with aclosing(self._volume.streams.give_out(content, 0, None, where)) as pieces:
                    body = b"".join([piece async for piece in pieces])
            except NotFound:
                continue  # it was removed and collected meanwhile
            for match in await asyncio.to_thread(pattern.matches, str(where), body, left):
                yield match
                left -= 1
            if left <= 0:
                return

    def _hits(self, asked: Search, path: TreePath, nearest: list[tuple[int, int, float]], sight: Sight) -> list[_Hit]:
        """The first of the pieces, the nearest first, that are in files that are asked for and may be read."""
        inside = self._volume.inside(path)
        hits: list[_Hit] = []
        for number_of_content, number, score in nearest:
            ways = self._ways(asked, inside, number_of_content, sight)
            if not ways:
                continue  # somewhere else
            place, content = table.place_of(sight.names.db, number_of_content, number), sight.content(number_of_content)
            if place is None or content is None:
                continue  # collected
            hits += [_Hit(way, content, *place, score) for way in ways]
            if len(hits) >= asked.limit:
                return hits[: asked.limit]
        return hits

    def _ways(self, asked: Search, inside: TreePath, content: int, sight: Sight) -> list[Way]:
        """Where a content is, as far as that is asked for and may be read."""
        return [
            way
            for way in table.names_of(sight.names, content)
            if TreePath(tuple(each.name for each in way)).is_within(inside)
            and table.is_indexed(way, self._folders)
            and asked.owner in {None, way[-1].owner}
            and (asked.since is None or way[-1].at >= asked.since)
            and (asked.until is None or way[-1].at <= asked.until)
            and sight.access.of(sight.user, way) & Rights.READ
        ]

    async def _found(self, hit: _Hit) -> Found | None:
        """A hit with its text; None where it was collected meanwhile."""
        entry = hit.way[-1]
        where = self._volume.outside(TreePath(tuple(each.name for each in hit.way)))
        try:
            async with aclosing(self._volume.streams.give_out(hit.content, hit.start, hit.stop, where)) as pieces:
                text = b"".join([piece async for piece in pieces]).decode("utf-8", errors="replace")
        except (NotFound, DataLoss):
            return None
        return Found(path=str(where), score=hit.score, text=text, start=hit.start, stop=hit.stop,
                     version=entry.born, owner=entry.owner, modified=entry.at)  # fmt: skip

    def _readable(self, path: TreePath, sight: Sight) -> list[tuple[Way, Content]]:
        """Files at and below a path that are not too large to be searched, and that the user may read."""
        top, _ = sight.find(self._volume.inside(path))
        found: list[tuple[Way, Content]] = []

        def walk(way: Way) -> None:
            if way and not way[-1].folder:
                self._take(way, sight, found)
                return
            for entry in sight.names.children(way[-1].node if way else TOP):
                walk((*way, entry))

        walk(top)
        return found

    def _take(self, way: Way, sight: Sight, found: list[tuple[Way, Content]]) -> None:
        entry: Entry = way[-1]
        if entry.size <= LARGEST and entry.content is not None and sight.access.of(sight.user, way) & Rights.READ:
            content = sight.content(entry.content)
            if content is not None:
                found.append((way, content))
