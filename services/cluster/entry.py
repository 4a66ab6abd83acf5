"""How a node comes to be a member: what it keeps of that, its certificate, and who signs those of others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from microkernel.errors import Invalid, MicrokernelError, NotFound, PreconditionFailed, Unavailable
from microkernel.service import Service
from microkernel.wire.trust import Expected
from services.cluster.certificates.join_secret import JoinSecret, read_join_secret
from services.cluster.certificates.join_token import JoinToken, parse_join_token
from services.cluster.certificates.names import check_node
from services.cluster.joining import ask_to_join, place_of
from services.cluster.messages import Renew, Signed
from services.cluster.settings import ClusterSettings
from services.cluster.standing import OWN, STANDING, Standing, StandingFile, founded

if TYPE_CHECKING:
    from services.cluster.encryption import Encryption

__all__ = ["Entry"]

AGAIN = 30.0  # seconds until a certificate is asked for again that was not to be had
KNOCK = 1.0  # seconds until a node that is waited for is asked again
LOOK = 3600.0  # seconds after which the wall clock is looked at again: it may be set


class Entry:
    """What makes a node a member. `take` comes first."""

    standing: Standing
    encryption: Encryption | None
    admitting: JoinSecret | None = None  # what lets others in here, beside join tokens

    def __init__(self, service: Service, settings: ClusterSettings) -> None:
        self._service = service
        self._settings = settings
        self._file = StandingFile(service.state_dir / ("joined" if settings.join else OWN) / STANDING)
        self._writing = asyncio.Lock()

    @property
    def _folder(self) -> Path:
        return self._file.path.parent

    async def take(self, *, encrypted: bool) -> None:
        """Know which cluster this is: the one that was joined, the one to join, or a new one."""
        settings, node = self._settings, self._service.node
        encryption: Encryption | None = None
        check_node(node)
        joins = bool(settings.join)
        secret = None
        if settings.join_secret is not None:
            secret = await asyncio.to_thread(read_join_secret, Path(settings.join_secret))
        self.admitting = None if joins else secret
        standing = await asyncio.to_thread(self._file.load, node)
        if joins:
            standing, encryption = await self._join(standing, secret)
        elif standing is None:
            standing = founded(node)
        if encryption is None and (encrypted or any(place_of(each).encrypted for each in settings.join)):
            encryption = await self._own_encryption(joins=joins)
        if encrypted and encryption is None:
            raise PreconditionFailed(
                "beyond this machine, nodes know each other by certificates, and this one has none",
                remedy="join a cluster that listens beyond its machine too, or listen on 127.0.0.1",
            )
        self.encryption = encryption
        self.standing = msgspec.structs.replace(standing, incarnation=standing.incarnation + 1)
        await asyncio.to_thread(self._file.keep, self.standing)

    async def _join(self, kept: Standing | None, secret: JoinSecret | None) -> tuple[Standing, Encryption | None]:
        """Be let in by a join token or secret, or come with what is kept, where that is of no use or none was given."""
        settings, service = self._settings, self._service
        join = secret if settings.token is None else parse_join_token(settings.token)
        if join is None and kept is None:
            raise PreconditionFailed(
                "a join token is needed to join a cluster",
                remedy="give --token; `mk nodes invite` on a node of that cluster makes one",
            )
        if join is not None:
            try:
                joined, encryption = await self._ask(join, settings.join_seconds if kept is None else 0.0)
            except MicrokernelError as error:
                if kept is None:
                    raise
                service.log.info("not let in anew, so this node comes as the member that it was: %s", error)
            else:
                incarnation = 0 if kept is None else kept.incarnation
                return msgspec.structs.replace(joined, incarnation=incarnation), encryption
        assert kept is not None
        return StandingFile.with_seeds(kept, [place_of(each).url for each in settings.join]), None

    async def _ask(self, join: JoinToken | JoinSecret, patience: float) -> tuple[Standing, Encryption | None]:
        """Ask to be let in, again for `patience` seconds while nobody answers who could do that."""
        service, loop = self._service, asyncio.get_running_loop()
        until = loop.time() + patience
        while True:
            try:
                return await ask_to_join(self._settings.join, join, service.node, self._folder, service.clock.wall)
            except Unavailable as error:
                if loop.time() + KNOCK > until:
                    raise
                service.log.info("waiting for a node that lets this one in: %s", error)
            await asyncio.sleep(KNOCK)

    async def _own_encryption(self, *, joins: bool) -> Encryption | None:
        from services.cluster.encryption import Encryption  # noqa: PLC0415 - only where there is TLS: see there

        folder, node, now = self._folder, self._service.node, self._service.clock.wall()
        if joins:
            return await asyncio.to_thread(Encryption.joined, folder, node, now=now)
        founding = Encryption.founding
        return await asyncio.to_thread(founding, folder, node, self._lifetime, now=now, secret=self.admitting)

    async def sign(self, request: str | None, node: str) -> Signed | None:
        """The certificate of another node; None in a cluster of one machine. Raises `Invalid`, `PreconditionFailed`."""
        if self.encryption is None:
            return None
        if request is None:
            raise Invalid("this cluster encrypts, so a node that joins asks for a certificate", field="request")
        wall = self._service.clock.wall
        return await asyncio.to_thread(self.encryption.sign, request, node, self._lifetime, now=wall())

    def expected(self, node: str | None) -> Expected | None:
        """Whose certificate a node has to show; None asks for the one that lets others in."""
        return None if self.encryption is None else self.encryption.expected(node)

    def keep(self, incarnation: int, addresses: list[str]) -> None:
        """Keep the incarnation, and where the others are, for the next boot."""
        standing = StandingFile.with_seeds(self.standing, addresses)
        standing = msgspec.structs.replace(standing, incarnation=max(incarnation, standing.incarnation))
        if standing != self.standing:
            self.standing = standing
            self._service.spawn(self._write(), name="keep standing")

    async def keep_certificate(self, others: Callable[[], Sequence[str]]) -> None:
        """Renew the certificate in time, until cancelled; `others` are the nodes that may sign it."""
        encryption, service = self.encryption, self._service
        if encryption is None:
            return
        while True:
            await asyncio.sleep(min(LOOK, max(1.0, encryption.renewal - service.clock.wall())))
            if service.clock.wall() < encryption.renewal:
                continue
            try:
                await self.renew(others())
            except MicrokernelError as error:
                service.log.warning("the certificate could not be renewed yet: %s", error)
                await asyncio.sleep(AGAIN)

    async def renew(self, others: Sequence[str]) -> None:
        """Have the next certificate now, signed by whichever of `others` does that. Raises why the last one has not."""
        service = self._service

        async def ask(request: str) -> Signed:
            refused: MicrokernelError = NotFound("there is nobody to ask")
            for node in others:
                try:
                    signed: Signed = await service.call(f"cluster.renew@{node}", Renew(request), deadline=10.0)
                except MicrokernelError as error:
                    refused = error
                else:
                    return signed
            raise refused

        assert self.encryption is not None
        await self.encryption.renew(self._folder, service.node, self._lifetime, ask, service.clock.wall)

    @property
    def _lifetime(self) -> float:
        """Seconds that a certificate is good for."""
        return self._settings.certificate_hours * 3600

    async def _write(self) -> None:
        async with self._writing:  # held while it is written: of two, the later one is to stay
            await asyncio.to_thread(self._file.keep, self.standing)
