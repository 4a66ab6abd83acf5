"""Makes one archive of what the services of a node keep, has those of another one take it in, and keeps replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec

from microkernel import __version__
from microkernel.errors import Invalid, MicrokernelError, NotFound, Unavailable
from microkernel.inputs import Inputs
from microkernel.message import Message, calling_node, calling_user, convert
from microkernel.portable import Export, check_restoring, from_thread, only_root
from microkernel.registry import ServiceState
from microkernel.service import Placement, Service, every, handles, streams
from microkernel.threads import to_its_end
from services.backup.making import Give, Making, exports
from services.backup.manifest import Manifest
from services.backup.messages import (
    ArchivePiece,
    CheckArchive,
    CreateBackup,
    KeepReplica,
    ListReplicas,
    NodeOfReplica,
    NodeReplica,
    ReplicaAnswer,
    ReplicaPieces,
    RestoreBackup,
    RestoreProgress,
)
from services.backup.replicas import Replicas
from services.backup.replicating import ReplicaSettings, Replicating
from services.backup.restoration import Restoration, archive_at

__all__ = ["Backup", "BackupSettings"]

HOUR, DAY = 3600.0, 86400.0  # seconds
PATIENCE = 5.0  # seconds for a node to tell what it keeps
LEFT_OUT = "was left out as asked"


class BackupSettings(Message, kw_only=True):
    """The section `[services.backup]`: a backup of which nobody takes anything for `patience_seconds` is ended.

    `replicas` is what nodes of a cluster keep of each other.
    """

    patience_seconds: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    replicas: ReplicaSettings = ReplicaSettings()


class Backup(Service):
    """One archive of what services keep: contexts, files, jobs, models, quotas, settings; and the way back.

    In a cluster, another node has a replica of that, of which an archive can be made when this one is lost.
    """

    name = "backup"
    placement = Placement.NODE
    uses = ("*",)  # whichever service has something to keep is asked for it
    Settings: ClassVar[type[Message]] = BackupSettings
    settings: BackupSettings

    async def start(self) -> None:
        """Begin to replicate: where there are no other nodes, that is to look for some now and then."""
        self._replicas = Replicas(self.node, self.state_dir / "replicas", self.clock)
        replicating = Replicating(self, self.settings.replicas, self._parts)
        self.spawn(replicating.run(), name="replicate")

    @streams(credit=8)
    async def create(self, message: CreateBackup) -> AsyncIterator[ArchivePiece]:
        """An archive of all that this node keeps, piece by piece; each service's part is as it was at one moment."""
        only_root("backs a node up")
        if message.of is not None:
            async with aclosing(self._of_a_replica(message, message.of)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        parts, left_out = await self._parts(message.without)
        manifest = Manifest(
            at=int(self.clock.wall()),
            node=self.node,
            made_by=__version__,
            parts=parts,
            secrets=message.secrets,
            models=message.models,
            left_out=left_out,
        )
        with_secrets = ", with secrets" if message.secrets else ""
        self.log.info("a backup is made for %s%s", calling_user() or "the node", with_secrets)
        give = exports(self, Export(secrets=message.secrets, models=message.models))
        async with aclosing(self._made(manifest, give)) as pieces:
            async for piece in pieces:
                yield piece

    @handles(idempotent=True)
    async def parts(self, message: CheckArchive) -> tuple[str, ...]:
        """The services of which an archive on this machine's disk has something; only that is read."""
        only_root("reads archives")
        path = Path(message.path)
        with await asyncio.to_thread(archive_at, path) as file:
            return await Restoration(file, path).parts()

    @streams
    async def check(self, message: CheckArchive) -> AsyncIterator[RestoreProgress]:
        """Read an archive on this machine's disk, and compare every byte of it; nothing is changed."""
        only_root("reads archives")
        path = Path(message.path)
        with await asyncio.to_thread(archive_at, path) as file:
            async with aclosing(Restoration(file, path).check()) as progress:
                async for step in progress:
                    yield step

    @streams
    async def restore(self, message: RestoreBackup) -> AsyncIterator[RestoreProgress]:
        """Have the services of this node, which is new, take in what an archive has of them."""
        check_restoring(self)
        path = Path(message.path)
        with await asyncio.to_thread(archive_at, path) as file:
            restoration = Restoration(file, path)
            services = {each.name for each in await self.call("kernel.services")}
            await restoration.check_parts(services, message.without)
            for steps in (restoration.check(), restoration.take_in(self, message.without)):
                async with aclosing(steps):
                    async for step in steps:
                        yield step

    @streams
    async def keep(self, message: KeepReplica, inputs: Inputs[ReplicaPieces]) -> AsyncIterator[ReplicaAnswer]:
        """Keep what another node has: first it hears what is here already, then it sends the rest."""
        async with aclosing(self._replicas.keep(calling_node(), message, inputs)) as answers:
            async for answer in answers:
                yield answer

    @handles(name="replicas", idempotent=True)
    async def list_replicas(self, message: ListReplicas) -> list[NodeReplica]:
        """What this node keeps of others; with `everywhere`, what all nodes keep of each other."""
        only_root("sees what nodes keep of each other")
        found = await self._replicas.all()
        if message.everywhere:
            others = [other.node for other in self.nodes.answering(self.name)]
            for told in await asyncio.gather(*map(self._replicas_at, others)):
                found += told
        return sorted(found, key=lambda each: (each.replica.node, each.age))

    @handles
    async def forget(self, message: NodeOfReplica) -> None:
        """Delete what this node keeps of another one, which makes it anew where it is there."""
        only_root("deletes what nodes keep of each other")
        await self._replicas.forget(message.node)

    @every(HOUR)
    async def forget_old(self) -> None:
        """Delete replicas of nodes that have been gone for long."""
        for node in await self._replicas.forget_older(self.settings.replicas.keep_days * DAY):
            self.log.info("what was kept of node '%s' is deleted: it was not renewed for long", node)

    async def _replicas_at(self, node: str) -> list[NodeReplica]:
        """What another node keeps; nothing where it does not say so at once."""
        try:
            told = await self.call(f"{self.name}.replicas@{node}", ListReplicas(), deadline=PATIENCE)
        except MicrokernelError as error:
            self.log.warning("node '%s' does not tell which replicas it keeps: %s", node, error)
            return []
        return convert(told, list[NodeReplica], what=f"{self.name}.replicas")

    async def _made(self, manifest: Manifest, give: Give) -> AsyncGenerator[ArchivePiece, None]:
        """The archive of which `manifest` tells, of what `give` has."""
        making = Making(self, manifest, give, patience=self.settings.patience_seconds)
        work = self.spawn(making.run(), name="make a backup")
        try:
            async with aclosing(making.pieces()) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            work.cancel()
            await asyncio.wait([work])

    async def _of_a_replica(self, message: CreateBackup, node: str) -> AsyncGenerator[ArchivePiece, None]:
        """The archive of another node, of the newest replica that there is."""
        if message.secrets or message.models:
            raise Invalid("a replica has neither secrets nor weights", field="secrets" if message.secrets else "models")
        replicas = await self.list_replicas(ListReplicas(everywhere=True))
        newest = min((each for each in replicas if each.replica.node == node), key=lambda each: each.age, default=None)
        if newest is None:
            known = ", ".join(sorted({each.replica.node for each in replicas})) or "none"
            raise NotFound(f"no node keeps what '{node}' had", remedy=f"there are replicas of: {known}", field="of")
        if newest.kept_by != self.node:
            async with self.stream(f"{self.name}.create@{newest.kept_by}", message) as stream:
                async for item in stream:
                    yield convert(item, ArchivePiece, what=f"an item of {self.name}.create")
            return
        reader = await self._replicas.reading(node)
        try:
            replica = reader.replica
            names = tuple(part.name for part in replica.parts)
            _check_without(message.without, names)
            manifest = Manifest(
                at=replica.at,
                node=node,
                made_by=replica.made_by,
                parts=tuple(name for name in names if name not in message.without),
                secrets=False,
                models=False,
                left_out=replica.left_out | dict.fromkeys(message.without, LEFT_OUT),
            )
            async with aclosing(self._made(manifest, lambda part: from_thread(reader.pieces(part)))) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            await to_its_end(reader.close)

    async def _parts(self, without: tuple[str, ...] = ()) -> tuple[tuple[str, ...], dict[str, str]]:
        """The services that are asked for what they keep, and those that are left out with why.

        Raises `Unavailable` where one is down that has something: a backup that lacks it would pass for a whole one.
        """
        services = {each.name: each for each in await self.call("kernel.services")}
        _check_without(without, services)
        parts = []
        left_out = {}
        for name, service in sorted(services.items()):
            if service.state == ServiceState.BROKEN:
                left_out[name] = f"is broken: {service.why}"
            elif not service.exports:
                continue
            elif name in without:
                left_out[name] = LEFT_OUT
            elif service.state == ServiceState.ELSEWHERE:
                left_out[name] = "is on another node of the cluster: that is backed up by itself"
            elif service.state in {ServiceState.RUNNING, ServiceState.READY}:
                parts.append(name)
            else:
                raise Unavailable(
                    f"service '{name}' has something to be backed up, and is {service.state}: {service.why}",
                    remedy=f"mk services restart {name}, or leave it out: --without {name}",
                    service=name,
                )
        return tuple(parts), left_out


def _check_without(without: Collection[str], services: Collection[str]) -> None:
    unknown = next((name for name in without if name not in services), None)
    if unknown is not None:
        raise NotFound(f"no service is named '{unknown}'", field="without")
