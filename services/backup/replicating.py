"""Has another node keep what this one has, again and again, so that a disk may be lost.

One node is chosen, on another machine, and stays so while it is there: what it has by now need not be sent once more.
How often is measured: replication takes a twentieth of the time at most.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Annotated, Literal
from urllib.parse import urlsplit

import blake3
import msgspec

from microkernel import __version__
from microkernel.buffers import Array
from microkernel.errors import MicrokernelError, NotFound, Unavailable
from microkernel.message import Message, convert
from microkernel.portable import KNOWN, EntryPiece, Export
from microkernel.service import Service
from microkernel.stream import Stream
from microkernel.threads import to_its_end
from services.backup.making import batches, exports
from services.backup.messages import KeepReplica, ReplicaAnswer, ReplicaPieces

__all__ = ["ReplicaSettings", "Replicating"]

SHARE = 20  # times as long as replication took, the next one is put off
SPREAD = 0.2  # of the time between two, by which nodes differ


class ReplicaSettings(Message, kw_only=True):
    """The section `[services.backup.replicas]`: what other nodes of a cluster keep of this one, without secrets.

    `to` says which of them may: "machines" are those on another machine, "nodes" are all, and "off" is nobody. It is
    done `every_seconds`, or less often where it takes long. Contents of files with more than `largest_bytes` stay out;
    with 0, all do, and what is kept are names, versions and owners. What this node keeps of others is deleted after
    `keep_days` without news.
    """

    to: Literal["machines", "nodes", "off"] = "machines"
    every_seconds: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    largest_bytes: Annotated[int, msgspec.Meta(ge=0)] = 64 << 20
    keep_days: Annotated[float, msgspec.Meta(gt=0)] = 30.0


class Member(msgspec.Struct, frozen=True):
    """A node, as far as it is asked for here, of what `cluster.list` tells."""

    node: str
    is_here: bool
    address: str


Parts = Callable[[], Awaitable[tuple[tuple[str, ...], dict[str, str]]]]
"""The services that have something, and those that are left out with why."""


class Replicating:
    """The replica of this node."""

    def __init__(self, service: Service, settings: ReplicaSettings, parts: Parts) -> None:
        self._service = service
        self._settings = settings
        self._parts = parts
        self._keeper = ""
        self._trouble = ""
        self._chance = random.Random()  # noqa: S311 - so that not all nodes begin at once

    async def run(self) -> None:
        """Do it as long as the node is there. What goes wrong is in the log, and tried again."""
        every = self._settings.every_seconds
        if self._settings.to == "off":
            return
        took = 0.0
        while True:
            await asyncio.sleep(max(every, SHARE * took) * self._chance.uniform(1 - SPREAD, 1 + SPREAD))
            began = self._service.clock.now()
            try:
                await self.replicate()
            except MicrokernelError as error:
                if error.message != self._trouble:
                    self._service.log.warning("no other node has what this one keeps now: %s", error)
                self._trouble = error.message
            took = self._service.clock.now() - began

    async def replicate(self) -> str | None:
        """Have it done once; the node that keeps it, None where there is no other. Raises what keeps it from that."""
        keeper = await self._choose()
        if keeper is None:
            return None
        names, left_out = await self._parts()
        asked = KeepReplica(at=int(self._service.clock.wall()), made_by=__version__, parts=names, left_out=left_out)
        async with self._service.stream(f"{self._service.name}.keep@{keeper}", asked) as stream:
            known = await _known(stream)
            export = Export(known=Array(known), largest=self._settings.largest_bytes)
            await self._send(stream, names, export, _digests(known))
            await stream.finish()
            if not (await _next(stream)).kept:
                raise Unavailable(f"node '{keeper}' has not kept what it was sent")
        if keeper != self._keeper or self._trouble:
            self._service.log.info("node '%s' keeps what this one has", keeper)
        self._keeper, self._trouble = keeper, ""
        return keeper

    async def _send(self, stream: Stream, parts: Sequence[str], export: Export, known: frozenset[bytes]) -> None:
        give = exports(self._service, export)
        for part in parts:
            async with aclosing(batches(give(part))) as pieces:
                async for batch in pieces:
                    lean = await to_its_end(_without_known, batch, known)
                    await stream.send(ReplicaPieces(part=part, pieces=lean))

    async def _choose(self) -> str | None:
        """The node that keeps it: the same as before, or one that is drawn by its name and this one's."""
        service = self._service
        others = {other.node for other in service.nodes.answering(service.name) if not other.is_last_resort}
        if others and self._settings.to == "machines":
            others &= await self._on_other_machines()
        if not others:
            return None
        return self._keeper if self._keeper in others else max(others, key=self._rank)

    async def _on_other_machines(self) -> set[str]:
        try:
            told = await self._service.call("cluster.list")
        except NotFound:
            return set()
        members = [convert(each, Member, what="an item of cluster.list") for each in told]
        own = {_host(each.address) for each in members if each.is_here}
        return {each.node for each in members if _host(each.address) not in own}

    def _rank(self, other: str) -> bytes:
        return blake3.blake3(f"{self._service.node} {other}".encode()).digest()


async def _known(stream: Stream) -> bytes:
    """The digests of what the other node has by now."""
    found = bytearray()
    while not (answer := await _next(stream)).begins:
        found += answer.known
    return bytes(found)


async def _next(stream: Stream) -> ReplicaAnswer:
    try:
        return convert(await anext(stream), ReplicaAnswer, what="an answer of the node that keeps a replica")
    except StopAsyncIteration as error:
        raise Unavailable("the node that keeps the replica has ended without a word") from error


def _digests(known: bytes) -> frozenset[bytes]:
    return frozenset(known[place : place + KNOWN] for place in range(0, len(known), KNOWN))


def _without_known(batch: Sequence[EntryPiece], known: frozenset[bytes]) -> tuple[EntryPiece, ...]:
    """Small entries lose their content too where the other node has it, although their services know no digest."""
    lean = []
    for piece in batch:
        if piece.name and piece.content and piece.size in {None, len(piece.content)}:
            digest = blake3.blake3(piece.content)
            if digest.digest()[:KNOWN] in known:
                piece = EntryPiece(  # noqa: PLW2901
                    name=piece.name, size=len(piece.content), digest=digest.hexdigest(), known=True, note=piece.note
                )
        lean.append(piece)
    return tuple(lean)


def _host(address: str) -> str:
    return urlsplit(address if "://" in address else f"//{address}").hostname or ""
