"""Makes one archive of all that the services of a node keep, and has those of another node take it in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec

from microkernel import __version__
from microkernel.errors import NotFound, Unavailable
from microkernel.message import Message, calling_user
from microkernel.portable import check_restoring, only_root
from microkernel.registry import ServiceState
from microkernel.service import Placement, Service, handles, streams
from services.backup.making import Making
from services.backup.manifest import Manifest
from services.backup.messages import ArchivePiece, CheckArchive, CreateBackup, RestoreBackup, RestoreProgress
from services.backup.restoration import Restoration, archive_at

__all__ = ["Backup", "BackupSettings"]


class BackupSettings(Message, kw_only=True):
    """The section `[services.backup]`: a backup of which nobody takes anything for `patience_seconds` is ended."""

    patience_seconds: Annotated[float, msgspec.Meta(gt=0)] = 120.0


class Backup(Service):
    """One archive of what services keep: contexts, files, jobs, models, quotas, settings; and the way back."""

    name = "backup"
    placement = Placement.NODE
    uses = ("*",)  # whichever service has something to keep is asked for it
    Settings: ClassVar[type[Message]] = BackupSettings
    settings: BackupSettings

    @streams(credit=8)
    async def create(self, message: CreateBackup) -> AsyncIterator[ArchivePiece]:
        """An archive of all that this node keeps, piece by piece; each service's part is as it was at one moment."""
        only_root("backs a node up")
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
        making = Making(self, manifest, patience=self.settings.patience_seconds)
        work = self.spawn(making.run(), name="make a backup")
        try:
            async with aclosing(making.pieces()) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            work.cancel()
            await asyncio.wait([work])

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

    async def _parts(self, without: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, str]]:
        """The services that are asked for what they keep, and those that are left out with why.

        Raises `Unavailable` where one is down that has something: a backup that lacks it would pass for a whole one.
        """
        services = {each.name: each for each in await self.call("kernel.services")}
        unknown = next((name for name in without if name not in services), None)
        if unknown is not None:
            raise NotFound(f"no service is named '{unknown}'", field="without")
        parts = []
        left_out = {}
        for name, service in sorted(services.items()):
            if service.state == ServiceState.BROKEN:
                left_out[name] = f"is broken: {service.why}"
            elif not service.exports:
                continue
            elif name in without:
                left_out[name] = "was left out as asked"
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
