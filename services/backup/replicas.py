"""The replicas that a node keeps of others: a file for each of them in one folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

from microkernel.clock import Clock
from microkernel.errors import Aborted, DataLoss, NotFound
from microkernel.threads import to_its_end
from services.backup.kept import KeptReplica, ReplicaReader
from services.backup.messages import KeepReplica, NodeReplica, ReplicaAnswer, ReplicaPieces

__all__ = ["Replicas"]

ENDING = ".sqlite"
TOLD_AT_ONCE = 256 << 10  # bytes of digests


class Replicas:
    """Those that `node` keeps in `folder`, which need not be there yet."""

    def __init__(self, node: str, folder: Path, clock: Clock) -> None:
        self._node = node
        self._folder = folder
        self._clock = clock
        self._coming: set[str] = set()

    async def keep(
        self, node: str, asked: KeepReplica, inputs: AsyncIterator[ReplicaPieces]
    ) -> AsyncGenerator[ReplicaAnswer, None]:
        """Take a replica of `node`: tell what is here already, then take what comes. Raises as `ReplicaTaker`.

        A file that turns out to be damaged is deleted, for the node to make it anew.
        """
        if node in self._coming:
            raise Aborted(f"a replica of '{node}' is coming already", remedy="wait for its end")
        self._coming.add(node)
        try:
            async with aclosing(self._take(self._kept(node), asked, inputs)) as answers:
                async for answer in answers:
                    yield answer
        except DataLoss:
            await to_its_end(self._kept(node).mend)
            raise
        finally:
            self._coming.discard(node)

    async def all(self) -> list[NodeReplica]:
        """What there is, by name; a file that is damaged is left out, as is one of which nothing is whole."""
        return await asyncio.to_thread(self._all)

    async def reading(self, node: str) -> ReplicaReader:
        """The replica of `node` as it is now; close it. Raises `NotFound` and `DataLoss`."""
        return await to_its_end(self._kept(node).reading)

    async def forget(self, node: str) -> None:
        """Delete what is kept of `node`. Raises `NotFound`, and `Aborted` while one is coming."""
        if node in self._coming:
            raise Aborted(f"a replica of '{node}' is coming just now", remedy="wait for its end")
        await to_its_end(self._kept(node).forget)

    async def forget_older(self, seconds: float) -> list[str]:
        """Delete those that have not been renewed for so long; of which nodes they were."""
        old = [each.replica.node for each in await self.all() if each.age > seconds]
        for node in old:
            await self.forget(node)
        return old

    def _kept(self, node: str) -> KeptReplica:
        return KeptReplica(self._folder / f"{node}{ENDING}")

    async def _take(
        self, kept: KeptReplica, asked: KeepReplica, inputs: AsyncIterator[ReplicaPieces]
    ) -> AsyncGenerator[ReplicaAnswer, None]:
        taker = await to_its_end(kept.taker, asked)
        try:
            known = await to_its_end(taker.known)
            for place in range(0, len(known), TOLD_AT_ONCE):
                yield ReplicaAnswer(known=known[place : place + TOLD_AT_ONCE])
            yield ReplicaAnswer(begins=True)
            async for some in inputs:
                await to_its_end(taker.add, some.part, some.pieces)
            await to_its_end(taker.finish, self._clock.wall())
        finally:
            await to_its_end(taker.close)
        yield ReplicaAnswer(kept=True)

    def _all(self) -> list[NodeReplica]:
        found = []
        for path in sorted(self._folder.glob(f"*{ENDING}")):
            kept = KeptReplica(path)
            try:
                replica, came = kept.told()
            except (NotFound, DataLoss):
                continue
            age = max(0.0, self._clock.wall() - came)
            found.append(NodeReplica(kept_by=self._node, age=age, disk_bytes=kept.disk_bytes, replica=replica))
        return found
