"""Links nodes to one system: who is in, how they are, and where they are reached."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator
from typing import ClassVar

from microkernel import __version__
from microkernel.authentication import when
from microkernel.capability import Identity
from microkernel.cores import available_cores
from microkernel.errors import AlreadyExists, Denied, Invalid, MicrokernelError, NotFound, PreconditionFailed
from microkernel.events import Event
from microkernel.inputs import Inputs
from microkernel.introspection import CreatedToken, NodeStatus
from microkernel.message import Message, calling_node, convert
from microkernel.portable import AHEAD, EntryPiece, Export, Import, Imported, check_restoring, only_root, read_entries
from microkernel.service import Placement, Service, every, handles, on, streams
from microkernel.wire.listening import in_url, is_loopback, open_sockets
from services.cluster.carrying_out import CarryingOut
from services.cluster.certificates.join_token import JoinToken, format_join_token
from services.cluster.certificates.names import check_node
from services.cluster.door import Door
from services.cluster.entry import Entry
from services.cluster.joining import Place, place_of
from services.cluster.launched_nodes import LaunchedNodes
from services.cluster.local_nodes import LocalNodes
from services.cluster.membership.actions import Changed, Fenced
from services.cluster.membership.membership import Membership
from services.cluster.messages import (
    Answer,
    Card,
    ClusterNode,
    Gossip,
    Invitation,
    Invite,
    Join,
    Joined,
    Load,
    Member,
    MemberState,
    NodeName,
    Reach,
    Removed,
    Renew,
    Signed,
    Summary,
)
from services.cluster.own_card import OwnCard
from services.cluster.portable import LARGEST, exported, imported
from services.cluster.protocol import PROTOCOL, PROTOCOL_MIN, disagreement
from services.cluster.replicas import Replicas
from services.cluster.settings import ClusterSettings

__all__ = ["Cluster"]

HEARD = 0.1  # seconds for the others to hear that this node takes no more work
MEETING = 5.0  # seconds that a node which joined before waits for one of the others
LEAVING = 1.0  # seconds for what runs over links that are told to end


class Cluster(Service):
    """Links nodes to one system: membership, fencing, and how each of them is reached."""

    name = "cluster"
    placement = Placement.NODE
    uses = ("*",)
    essential = True
    start_timeout = 60.0
    Settings: ClassVar[type[Message]] = ClusterSettings
    settings: ClusterSettings

    async def start(self) -> None:
        """Listen for others, and join them. Raises why that cannot be."""
        settings = self.settings
        status = convert(await self.call("kernel.status"), NodeStatus, what="kernel.status")
        sockets = await open_sockets(settings.host, settings.port, setting="--cluster HOST:PORT")
        try:
            beyond = not is_loopback(sockets)
            self._entry = Entry(self, settings)
            await self._entry.take(encrypted=beyond)
            self._place = self._placed(sockets)
            me, loop = self._entry.standing, asyncio.get_running_loop()
            self._membership = Membership(
                self.node,
                me.incarnation,
                self._place.url,
                now=loop.time(),
                chance=random.Random(),  # noqa: S311 - whom to ask next, not a secret
                card=Card(cores=available_cores(), weight=float(available_cores())),
                version=__version__,
                protocol=PROTOCOL,
                protocol_min=PROTOCOL_MIN,
                seeds=[seed for seed in me.seeds if seed != self._place.url],
            )
            self._acting = CarryingOut(
                self,
                self._membership,
                me.secret,
                expected=self._entry.expected,
                told=self._changed,
                fenced=self._come_back,
            )
            self._door = Door(
                self.port,
                node=self.node,
                epoch=status.epoch,
                secret=me.secret,
                is_buried=self._membership.buried,
                authenticate=self._authenticate,
                encryption=self._entry.encryption,
                log=self.log,
            )
            await self._door.open(sockets)
        except BaseException:
            for each in sockets:
                each.close()
            raise
        self._card = OwnCard(self, self._membership, self._acting.perform)
        self._replicas = Replicas(self, self._membership)
        self._load = Load()
        self._workers = LocalNodes(self, settings.nodes, settings.worker)
        self._launched = LaunchedNodes(
            self,
            {} if settings.join else settings.launchers,  # the nodes that it starts do not start more
            settings.launched,
            owner=me.mark,
            is_there=lambda node: node in self._others(),
        )
        self.spawn(self._acting.run(), name="membership")
        self.spawn(self._card.run(), name="card")
        self.spawn(self._replicas.run(), name="replicas")
        self.spawn(self._entry.keep_certificate(self._others), name="certificate")
        if me.seeds:
            await self._meet(me.seeds)

    async def ready(self) -> None:
        """Start the workers: this node lets others in by now."""
        self._workers.start()
        self._launched.start()

    async def stop(self) -> None:
        """Say goodbye, let what runs over links end for a moment, close them; end the workers."""
        goodbye = self._acting.say_goodbye(self._membership.leave(self._now()))
        await asyncio.gather(self._workers.stop(), self._launched.stop(), goodbye)
        await self._door.close(LEAVING)
        await self._acting.close()

    # What nodes say to each other

    @handles(concurrency=4096, deadline=10.0)
    async def probe(self, message: Gossip) -> Answer:
        """Another node asks whether this one is there, and tells what is new."""
        _check_source(message.source)
        self._acting.perform(self._membership.heard(message, self._now()))
        gossip = self._membership.gossip_to(message.source)
        return Answer(incarnation=self._membership.me.incarnation, load=self._load, gossip=gossip)

    @handles(concurrency=256, deadline=60.0)
    async def reach(self, message: Reach) -> int | None:
        """Probe a node for another one: its incarnation, None where it does not answer."""
        calling_node()
        gossip = self._membership.gossip_to(message.node)
        try:
            answer: Answer = await self.call(f"cluster.probe@{message.node}", gossip, deadline=message.timeout)
        except MicrokernelError:
            return None
        return answer.incarnation

    @handles(concurrency=64, deadline=10.0)
    async def exchange(self, message: Summary) -> Gossip:
        """Another node compares all that it knows."""
        _check_source(message.gossip.source)
        gossip, actions = self._membership.compared(message, self._now())
        self._acting.perform(actions)
        return gossip

    @handles(concurrency=256, deadline=10.0)
    async def tell(self, message: Gossip) -> None:
        """What this node has asked for."""
        _check_source(message.source)
        self._acting.perform(self._membership.heard(message, self._now()))

    @handles(concurrency=16, deadline=10.0)
    async def join(self, message: Join) -> Joined:
        """Let a node in that has shown a join token; it gets the cluster's secret, and its certificate."""
        check_node(message.node)
        mine = self._membership.me
        theirs = Member(
            node=message.node,
            incarnation=0,
            life=0,
            state=MemberState.ALIVE,
            address="",
            version=message.version,
            protocol=message.protocol,
            protocol_min=message.protocol_min,
        )
        why = disagreement(mine, theirs)
        if why is not None:
            raise PreconditionFailed(why)
        known = self._membership.member(message.node)
        if known is not None and not known.state.over:
            raise AlreadyExists(
                f"a node named '{message.node}' is in the cluster already",
                remedy='give it another name: node = "…" in its configuration, or --node',
                field="node",
            )
        signed = await self._entry.sign(message.request, message.node)
        seeds = tuple(member.address for member in self._membership.members() if not member.state.over)
        self.log.info("node '%s' is let in", message.node)
        removed = () if self._entry.encryption is None else self._entry.encryption.removed()
        return Joined(secret=self._entry.standing.secret, seeds=seeds, certificate=signed, removed=removed)

    @handles(concurrency=16, deadline=10.0)
    async def renew(self, message: Renew) -> Signed:
        """The next certificate of the node that asks."""
        signed = await self._entry.sign(message.request, calling_node())
        if signed is None:
            raise PreconditionFailed("this cluster has no certificates")
        return signed

    @handles(concurrency=16, deadline=10.0)
    async def refuse(self, message: Removed) -> None:
        """A node was removed from the cluster: it is let in nowhere."""
        calling_node()
        await self._refuse(message)

    # What people ask

    @handles(name="list", idempotent=True)
    async def list_nodes(self) -> list[ClusterNode]:
        """All nodes of the cluster, this one first; those that are gone are shown for a moment yet."""
        return [self._shown(member) for member in self._membership.members()]

    @handles(deadline=10.0)
    async def invite(self, message: Invite) -> Invitation:
        """Make a join token: who has it may join the cluster, until it expires or is revoked."""
        only_root("invites nodes")
        fingerprint, encryption = None, self._entry.encryption
        if encryption is not None:
            fingerprint = encryption.fingerprint(self.clock.wall())
        elif not self._entry.standing.founded:
            raise PreconditionFailed("this node lets no others in", remedy="ask the node with which the cluster began")
        made = await self.call(
            "kernel.token_create", user="node", allow=("cluster.join",), expires_in=message.expires_in
        )
        created = convert(made, CreatedToken, what="kernel.token_create")
        expires = created.expires
        self.log.info("a join token was made, good until %s", "revoked" if expires is None else when(expires))
        scheme = "http" if encryption is None else "https"
        host = f"[{self._place.host}]" if ":" in self._place.host else self._place.host
        return Invitation(
            url=f"{scheme}://{host}:{self._place.port}",
            token=format_join_token(JoinToken(fingerprint, created.token)),
            expires=expires,
        )

    @handles(deadline=10.0)
    async def drain(self, message: NodeName) -> ClusterNode:
        """Have a node take no more work; what it has goes on. It takes some again when it is booted anew."""
        only_root("drains nodes")
        if message.node == self.node:
            self._acting.perform(self._membership.drain(self._now()))
            return self._shown(self._membership.me)
        self._member(message.node)
        shown: ClusterNode = await self.call(f"cluster.drain@{message.node}", message)
        return shown

    @handles(deadline=10.0)
    async def remove(self, message: NodeName) -> None:
        """Have a node leave for good: it is told to, and its certificate lets it in no more."""
        only_root("removes nodes")
        if message.node == self.node:
            raise Invalid("a node does not remove itself", remedy="stop it", field="node")
        member = self._member(message.node)
        if self._entry.encryption is not None:
            if not self._entry.standing.founded:
                raise PreconditionFailed(
                    "nodes are removed by the node that lets them in",
                    remedy="ask the node with which the cluster began",
                )
            await self._refuse_everywhere(Removed(member.node, self.clock.wall()))
        try:
            await self.call(f"kernel.shutdown@{member.node}", deadline=5.0)
        except MicrokernelError as error:
            self.log.warning("node '%s' could not be told to leave: %s", member.node, error)
        self._door.end_node(member.node, "this node was removed from the cluster")

    @handles(deadline=None)
    async def leave(self) -> None:
        """Take no more work, let what others have running here end, and leave; for a node that is about to stop.

        What has not ended within `drain_seconds` goes on elsewhere where it can.
        """
        only_root("has nodes leave")
        if not self._members_there():
            return
        self._acting.perform(self._membership.drain(self._now()))
        await asyncio.sleep(HEARD)  # the others hear of it meanwhile
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_seconds):
                await self._door.drained()

    # What this node has

    @on("service.*.*")
    async def look_again(self, _: Event) -> None:
        """A service has come or gone."""
        self._card.look()

    @on("inference.*")
    async def look_at_models(self, event: Event) -> None:
        """A model has been loaded, or has left."""
        if event.subject in {"inference.loaded", "inference.unloaded"}:
            self._card.look()

    @on("devices.*.*")
    async def look_at_servers(self, _: Event) -> None:
        """A device has changed its state: with a server, its models come and go."""
        self._card.look()

    @streams
    async def export(self, message: Export) -> AsyncIterator[EntryPiece]:
        """With secrets, the authority and the secret of a cluster that began here."""
        only_root("exports the keys of a cluster")
        if message.secrets:
            for piece in await asyncio.to_thread(exported, self.state_dir):
                yield piece

    @streams(name="import", credit=AHEAD)
    async def take_in(self, message: Import, inputs: Inputs[EntryPiece]) -> AsyncIterator[Imported]:  # noqa: ARG002
        """Have this node be the one with which a cluster began."""
        check_restoring(self)
        entries = await read_entries(inputs, self.name, most=LARGEST)
        yield Imported(notes=await asyncio.to_thread(imported, self.state_dir, entries, self.clock.wall()))

    @every(0.5)
    async def count(self) -> None:
        """How busy this node is, for whoever asks."""
        services = await self.call("kernel.services")
        calls = sum(each.in_flight for each in services if each.name not in {"cluster", "kernel", "gateway"})
        self._load = Load(calls=float(calls))

    async def _authenticate(self, token: str) -> Identity | None:
        if self._entry.admitting is not None:
            joining = self._entry.admitting.identity(token)
            if joining is not None:
                return joining
        found = await self.call("kernel.authenticate", token=token)
        return None if found is None else convert(found, Identity, what="kernel.authenticate")

    def _placed(self, sockets: list[socket.socket]) -> Place:
        """Where others find this node."""
        encrypted = self._entry.encryption is not None
        host, port = sockets[0].getsockname()[:2]
        if self.settings.advertise is not None:
            told = place_of(
                self.settings.advertise if ":" in self.settings.advertise else f"{self.settings.advertise}:{port}"
            )
            return Place(told.host, told.port, encrypted)
        return Place(in_url(host).strip("[]"), port, encrypted)

    async def _meet(self, seeds: tuple[str, ...]) -> None:
        """Come to the others; where none answers, they are tried again and again from now on."""
        try:
            async with asyncio.timeout(MEETING):
                for seed in seeds:
                    if seed == self._place.url:
                        continue
                    try:
                        return await self._acting.meet(seed)
                    except MicrokernelError as error:
                        self.log.info("no member answers at %s: %s", seed, error)
        except TimeoutError:
            self.log.warning("no member of the cluster has answered yet")
        return None

    # What changes

    def _changed(self, change: Changed) -> None:
        member, before = change.member, change.before
        if before is None or before.state is not member.state or before.card != member.card:
            self._replicas.look()
        if member.node == self.node:
            self._keep()
        elif before is None or before.state is not member.state or before.life != member.life:
            self.log.info("node '%s' is %s", member.node, member.state)
            state = member.state.value
            self.publish(f"cluster.{state}", self._shown(member))
            if member.state.over:
                self._door.end_node(member.node, f"this node is {member.state}, as the others see it")
            self._keep()

    def _keep(self) -> None:
        """Keep what the next boot has to know."""
        self._entry.keep(self._membership.me.incarnation, [member.address for member in self._members_there()])

    async def _refuse_everywhere(self, removed: Removed) -> None:
        """Have no member let in a node that was removed."""
        await self._refuse(removed)
        for node in self._others():
            if node != removed.node:
                try:
                    await self.call(f"cluster.refuse@{node}", removed, deadline=5.0)
                except MicrokernelError as error:
                    self.log.warning("node '%s' has not heard that '%s' was removed: %s", node, removed.node, error)

    async def _refuse(self, removed: Removed) -> None:
        encryption = self._entry.encryption
        if encryption is not None:
            await asyncio.to_thread(encryption.refuse, removed, now=self.clock.wall())
        self._door.end_node(removed.node, "this node was removed from the cluster")

    def _others(self) -> list[str]:
        return [member.node for member in self._members_there()]

    async def _come_back(self, fenced: Fenced) -> None:
        """The others have taken this node for dead: end all that it does for them, and come back with a new life."""
        rival = f": another node has its name, at {fenced.rival}" if fenced.rival else ""
        self.log.warning("this node was fenced off by '%s'%s; it comes back with a new life", fenced.by, rival)
        self.publish("cluster.fenced", node=self.node, by=fenced.by, incarnation=fenced.incarnation)
        for member in self._membership.members()[1:]:
            self._door.end_node(member.node, "the node that you speak with was fenced off")
        for other in self.nodes:
            self._acting.forget(other.node, "is not asked any more: this node was fenced off")
        if fenced.rival:
            raise PreconditionFailed(
                f"another node of the cluster is named '{self.node}', at {fenced.rival}",
                remedy='give one of them another name: node = "…"',
            )
        await asyncio.sleep(fenced.wait)
        self._acting.perform(self._membership.rejoin(self._now()))
        for member in self._membership.members()[1:]:
            if not member.state.over:
                self._acting.attach(member)

    def _shown(self, member: Member) -> ClusterNode:
        here = member.node == self.node
        return ClusterNode(
            node=member.node,
            state=member.state,
            is_here=here,
            incarnation=member.incarnation,
            address=member.address,
            version=member.version,
            services=member.card.services,
            models=member.card.models,
            devices=member.card.devices,
            cores=member.card.cores,
            in_flight=round(self._load.calls if here else member.load.calls),
            round_trip=None if here else self._acting.round_trips.get(member.node),
        )

    def _members_there(self) -> list[Member]:
        """The other members that are there."""
        return [member for member in self._membership.members()[1:] if not member.state.over]

    def _member(self, node: str) -> Member:
        member = self._membership.member(node)
        if member is None or member.state.over:
            known = ", ".join(each.node for each in self._membership.members())
            raise NotFound(f"no node is named '{node[:64]}'", remedy=f"nodes: {known}", field="node")
        return member

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _check_source(source: str) -> None:
    """Raises `Denied` where the node that calls speaks in the name of another one."""
    caller = calling_node()
    if caller != source:
        raise Denied(f"node '{caller}' speaks in the name of '{source}'")
