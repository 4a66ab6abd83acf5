"""Workers here and on other nodes as one crew: a batch goes where the least is under way for each core (hot: a batch).

What goes to another node and comes back is MessagePack, as between processes: plain values, bytes and arrays. A node
that cannot do a map's tasks, as one where its function is not installed, gets no more of them; a node that dies is a
worker that was lost. Where the link alone is lost, no task is to blame; a node whose link is lost again and again gets
no more of them either.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from microkernel.errors import Code, Invalid, MicrokernelError, NotFound, Overloaded, TooBig, Unavailable
from microkernel.isolation.packing import MessagePack
from microkernel.nodes import Neighbour
from microkernel.policy import Claim
from microkernel.service import Service
from services.scheduler.mapping.crews import Crew, WorkerLost
from services.scheduler.mapping.work import Outcome
from services.scheduler.messages import RunElsewhere, RunTasks

__all__ = ["OverNodes", "pack_outcomes", "unpack_tasks"]

MOST_CORES = 1024  # that one node counts for
MOST_LOST = 16  # batches of one map with a node's link
REACH = 0.5  # seconds for another link to a node, before it is asked no more whether it is there
SETTLE = 0.05  # seconds in which a node is known to be dead where nobody listens any more
_packing = MessagePack()


class OverNodes:
    """The workers of this node, and the cores of the others that take work."""

    def __init__(self, own: Crew, service: Service) -> None:
        self._own = own
        self._service = service
        self._here = 0  # batches under way on this node
        self._there: dict[str, int] = {}  # on the others
        self._lost: dict[str, int] = {}  # batches that were lost with a link to a node that is there
        self._unable: dict[str, str] = {}  # nodes that cannot do these tasks, and why

    @property
    def size(self) -> int:
        return self._own.size + sum(_cores(node) for node in self._nodes())

    async def run(self, batch: RunTasks, claim: Claim) -> list[Outcome]:
        node = self._choose()
        if node is None:
            self._here += 1
            try:
                return await self._own.run(batch, claim)
            finally:
                self._here -= 1
        self._there[node.node] = self._there.get(node.node, 0) + 1
        try:
            return await self._run_there(node, batch, claim)
        finally:
            self._there[node.node] -= 1

    def _nodes(self) -> list[Neighbour]:
        others = self._service.nodes.answering(self._service.name)
        return [node for node in others if node.node not in self._unable and not node.is_last_resort]

    def _choose(self) -> Neighbour | None:
        """The node for the next batch; None is this one, which comes first where they are alike."""
        least, chosen = self._here / self._own.size, None
        for node in self._nodes():
            load = self._there.get(node.node, 0) / _cores(node)
            if load < least:
                least, chosen = load, node
        return chosen

    async def _run_there(self, neighbour: Neighbour, batch: RunTasks, claim: Claim) -> list[Outcome]:
        node = neighbour.node
        try:
            packed = _packing.pack(batch, "the tasks of a map")
        except (Invalid, TooBig):  # they do not leave this node
            return await self._own.run(batch, claim)
        now = self._service.clock.now()
        ask = RunElsewhere(
            tasks=bytes(packed),
            owner=claim.owner,
            process_class=claim.process_class,
            nice=claim.nice,
            age=max(0.0, now - claim.came),
            due=None if claim.deadline is None else claim.deadline - now,
        )
        try:
            answer: bytes = await self._service.call(f"{self._service.name}.run_tasks@{node}", ask)
        except asyncio.CancelledError:
            raise
        except (Unavailable, NotFound) as error:
            if error.code is Code.NOT_FOUND and error.may_have_run is not False:
                self._pass_over(node, error)
            elif error.may_have_run is not False:
                if await self._is_gone(neighbour):
                    raise WorkerLost(f"node '{node}': {error.message}") from error
                self._note_loss(node, error)
            raise Unavailable(f"node '{node}': {error.message}", may_have_run=False) from error
        except Overloaded:
            raise
        except MicrokernelError as error:
            self._pass_over(node, error)
            raise Unavailable(f"node '{node}': {error.message}", may_have_run=False) from error
        outcomes: list[Outcome] = _packing.unpack(answer, list[Outcome], "the outcomes of a map")
        return outcomes

    async def _is_gone(self, neighbour: Neighbour) -> bool:
        """Whether the node itself has ended, or is taken for dead; if not, its link alone was lost."""
        try:
            async with asyncio.timeout(REACH):
                await neighbour.link()
        except TimeoutError:
            pass
        except MicrokernelError:
            await asyncio.sleep(SETTLE)
        return self._service.nodes.get(neighbour.node) is not neighbour

    def _note_loss(self, node: str, error: MicrokernelError) -> None:
        self._lost[node] = self._lost.get(node, 0) + 1
        if self._lost[node] >= MOST_LOST:
            self._pass_over(node, error)

    def _pass_over(self, node: str, error: MicrokernelError) -> None:
        """Give this node no more of these tasks: what is wrong with them there, is told where they are done."""
        if node in self._unable:
            return
        self._unable[node] = error.message
        self._service.log.info("node '%s' gets no more tasks of this map: %s", node, error.message)


def unpack_tasks(ask: RunElsewhere) -> RunTasks:
    """What another node has sent."""
    batch: RunTasks = _packing.unpack(msgspec.Raw(ask.tasks), RunTasks, "the tasks of a map")
    return batch


def pack_outcomes(outcomes: list[Outcome]) -> bytes:
    """What goes back. Raises `Invalid` for values that have no plain form, `TooBig` for too much at once."""
    packed: Any = _packing.pack(outcomes, "the outcomes of a map")
    return bytes(packed)


def _cores(node: Neighbour) -> int:
    return max(1, min(MOST_CORES, round(node.weight)))
