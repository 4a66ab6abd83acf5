"""Carries out what the membership asks for: probes over links, and the nodes that the kernel knows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from microkernel.errors import MicrokernelError, NotFound, Unavailable
from microkernel.message import Call
from microkernel.nodes import Neighbour, Nodes
from microkernel.service import Service
from microkernel.wire.node_link import NodeLink
from microkernel.wire.trust import Expected
from services.cluster.membership.actions import Action, Changed, Exchange, Fenced, Probe, ProbeThrough, Tell
from services.cluster.membership.membership import Membership
from services.cluster.messages import Answer, Gossip, Member, MemberState, Reach
from services.cluster.passport import Passport

__all__ = ["CarryingOut"]

EXCHANGE = 5.0  # seconds for two tables to be compared
FAREWELL = 1.5  # seconds for answers of a node that has left; its goodbye comes over another link, and may be faster
SHUT_OUT = "the other node has taken this one for dead"
URGENT = 0  # the priority of what tells who is there


class CarryingOut:
    """What the membership of one node does to the world. `told` hears of each member that is no longer as it was."""

    def __init__(
        self,
        service: Service,
        membership: Membership,
        secret: str,
        *,
        expected: Callable[[str | None], Expected | None],
        told: Callable[[Changed], None],
        fenced: Callable[[Fenced], Coroutine[Any, Any, None]],
    ) -> None:
        """`expected` says whose certificate a node has to show, None is one of which only the address is known."""
        self._service = service
        self._membership = membership
        self._secret = secret
        self._expected = expected
        self._told = told
        self._fenced = fenced
        self._due = asyncio.Event()  # something has happened: look again when the next thing is due
        self._closing: set[asyncio.Task[None]] = set()
        self.round_trips: dict[str, float] = {}

    async def run(self) -> None:
        """Do what is due, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self.perform(self._membership.tick(loop.time()))
            self._due.clear()
            wait = self._membership.due() - loop.time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, wait) if wait < 1e9 else None):
                    await self._due.wait()

    def perform(self, actions: Iterable[Action]) -> None:
        """Begin to carry out `actions`."""
        for action in actions:
            match action:
                case Probe():
                    self._begin(self._probe(action), f"probe {action.node}")
                case ProbeThrough():
                    self._begin(self._probe_through(action), f"probe {action.node} through {action.via}")
                case Exchange():
                    self._begin(self._exchange(action), f"exchange with {action.node or action.address}")
                case Tell():
                    self._begin(self._tell(action), f"tell {action.node}")
                case Fenced():
                    self._begin(self._fenced(action), "fenced")
                case Changed():
                    self._changed(action)
        self._due.set()

    async def meet(self, address: str) -> None:
        """Come to the cluster of which a member is at `address`. Raises `Unavailable` where none answers."""
        gossip = await self._compare(None, address, self._membership.summary_to())
        self.perform(self._membership.joined(gossip, self._now()))

    async def say_goodbye(self, actions: Iterable[Action]) -> None:
        """Carry out what is to be done when this node leaves, and return when it is done."""
        probes = [self._farewell(action) for action in actions if isinstance(action, Probe)]
        await asyncio.gather(*probes)

    async def close(self) -> None:
        """Forget all others, and close what leads to them."""
        for other in self._service.nodes:
            self.forget(other.node, "is not asked any more: this node has left the cluster")
        while self._closing:
            await asyncio.wait(self._closing)

    # Asking

    async def _probe(self, action: Probe) -> None:
        node, began = action.node, self._now()
        member = self._membership.member(node)
        try:
            answer: Answer = await self._service.call(
                f"cluster.probe@{node}", action.gossip, deadline=action.timeout, priority=URGENT
            )
        except NotFound:  # it went meanwhile
            return
        except MicrokernelError as error:
            if _was_refused(error):
                life = None if member is None else member.life
                self.perform(self._membership.link_lost(node, self._now(), refused=True, life=life))
            else:
                self.perform(self._membership.failed(node, self._now()))
            return
        took = self._now() - began
        self.round_trips[node] = took
        actions = self._membership.answered(node, answer.incarnation, took, self._now(), answer.gossip, answer.load)
        self._refresh(node)
        self.perform(actions)

    async def _probe_through(self, action: ProbeThrough) -> None:
        try:
            reached: int | None = await self._service.call(
                f"cluster.reach@{action.via}",
                Reach(action.node, action.timeout),
                deadline=2 * action.timeout,
                priority=URGENT,
            )
        except MicrokernelError:
            return  # the helper itself did not answer: that says nothing of the node
        if reached is None:
            self.perform(self._membership.unreached(action.node, action.via, self._now()))
        else:
            self.perform(self._membership.answered(action.node, reached, None, self._now()))

    async def _exchange(self, action: Exchange) -> None:
        try:
            gossip = await self._compare(action.node, action.address, action.summary)
        except MicrokernelError as error:
            self._service.log.debug("no exchange with %s: %s", action.node or action.address, error)
        else:
            self.perform(self._membership.heard(gossip, self._now()))

    async def _compare(self, node: str | None, address: str, summary: Any) -> Gossip:
        """A member's answer to our table. One that is no member yet is asked over a link of its own."""
        if node and self._service.nodes.get(node) is not None:
            told: Gossip = await self._service.call(
                f"cluster.exchange@{node}", summary, deadline=EXCHANGE, priority=URGENT
            )
            return told
        link = NodeLink(address, self._passport(), self._expected(node or None))
        try:
            async with asyncio.timeout(EXCHANGE):
                await link.start()
                gossip: Gossip = await link.forward("cluster.exchange", summary, Call(caller="cluster"), Gossip)
                return gossip
        except TimeoutError as error:
            raise Unavailable(f"the node at {address} did not answer within {EXCHANGE:g} s") from error
        finally:
            await link.aclose()

    async def _tell(self, action: Tell) -> None:
        with contextlib.suppress(MicrokernelError):  # the tables are compared soon anyway
            await self._service.call(f"cluster.tell@{action.node}", action.gossip, deadline=EXCHANGE, priority=URGENT)

    async def _farewell(self, action: Probe) -> None:
        with contextlib.suppress(MicrokernelError):
            await self._service.call(
                f"cluster.probe@{action.node}", action.gossip, deadline=action.timeout, priority=URGENT
            )

    # What the kernel knows

    def _changed(self, change: Changed) -> None:
        member, before = change.member, change.before
        if member.node != self._membership.me.node:
            reborn = before is not None and before.life != member.life
            if reborn or member.state.over:
                left = member.state is MemberState.LEFT and not reborn
                self.forget(member.node, "was started anew" if reborn else _why_gone(member), at_once=not left)
            if not member.state.over:
                self.attach(member)
        self._told(change)

    def attach(self, member: Member) -> None:
        """Have the kernel reach a member."""
        nodes: Nodes = self._service.nodes
        if nodes.get(member.node) is None:
            nodes.attach(member.node, lambda: self._dial(member.node))
        self._refresh(member.node)

    def _refresh(self, node: str) -> None:
        """Have the kernel know what a member has told of itself last."""
        member, neighbour = self._membership.member(node), self._service.nodes.get(node)
        if member is not None and neighbour is not None:
            self._service.nodes.offer(
                neighbour,
                frozenset(member.card.services),
                is_open=member.state.works or member.state is MemberState.QUARANTINED,
                is_last_resort=member.state is MemberState.QUARANTINED,
                load=member.load.calls,
                weight=max(0.01, member.card.weight),
                things={"model": frozenset(member.card.models), "device": frozenset(member.card.devices)},
            )

    def forget(self, node: str, why: str, *, at_once: bool = True) -> None:
        """Have the kernel reach a node no more. Without `at_once`, what is on its way from there still arrives."""
        self.round_trips.pop(node, None)
        neighbour = self._service.nodes.detach(node, why, at_once=at_once)
        if neighbour is not None:
            closing = asyncio.create_task(self._close(neighbour, at_once), name=f"close the link to {node}")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    @staticmethod
    async def _close(neighbour: Neighbour, at_once: bool) -> None:
        if not at_once:
            await neighbour.ended(FAREWELL)
        await neighbour.aclose()

    async def _dial(self, node: str) -> NodeLink:
        member = self._membership.member(node)
        if member is None:
            raise NotFound(f"node '{node}' is no member any more", may_have_run=False)
        life = member.life

        def lost() -> None:
            if self._service.nodes.get(node) is None:
                return  # it has said goodbye before
            self.perform(self._membership.link_lost(node, self._now(), refused=False, life=life))

        link = NodeLink(member.address, self._passport(), self._expected(node), lost=lost, shut_out=SHUT_OUT)
        try:
            await link.start()
        except BaseException:
            await link.aclose()
            raise
        return link

    def _passport(self) -> str:
        me = self._membership.me
        return Passport(me.node, me.life).text(self._secret)

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._service.spawn(work, name=name)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _why_gone(member: Member) -> str:
    return "has left the cluster" if member.state is MemberState.LEFT else "is dead"


def _was_refused(error: BaseException) -> bool:
    """Whether no process listens at the other end."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ConnectionRefusedError) or isinstance(
            getattr(seen, "os_error", None), ConnectionRefusedError
        ):
            return True
        seen = seen.__cause__
    return False
