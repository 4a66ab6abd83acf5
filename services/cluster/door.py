"""The door through which other nodes come: `mk.v1` on a port of its own, with mutual TLS beyond this machine.

A member gets in with its passport, and where there is TLS with its certificate for the same name. What shows a join
token may ask to be let into the cluster, and nothing else. A life that is over is heard about that, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from microkernel.capability import ALL, Identity, Rights
from microkernel.errors import Unauthenticated
from microkernel.port import Port
from microkernel.wire.node_link import BETWEEN_NODES
from microkernel.wire.server import WireServer
from services.cluster.passport import PREFIX, read_passport

if TYPE_CHECKING:
    from services.cluster.certificates.contexts import Peer
    from services.cluster.encryption import Encryption

__all__ = ["Door"]

HANDSHAKE_TIMEOUT = 10.0  # seconds
MOST_LINKS = 4096
JOINING = Rights(allow=("cluster.join",), publish=(), subscribe=())
BURIED = Rights(allow=("cluster.exchange", "cluster.probe"), publish=(), subscribe=())

_peer: ContextVar[Peer | None] = ContextVar("microkernel_cluster_peer", default=None)


class Door:
    """The listener of a node for others."""

    def __init__(
        self,
        port: Port,
        *,
        node: str,
        epoch: str,
        secret: str,
        is_buried: Callable[[str, int], bool],
        authenticate: Callable[[str], Awaitable[Identity | None]],
        encryption: Encryption | None,
        log: logging.Logger,
    ) -> None:
        """`authenticate` knows the signed tokens of this node; `is_buried` which life of a node is over."""
        self._secret = secret
        self._is_buried = is_buried
        self._authenticate = authenticate
        self._encryption = encryption
        self._log = log
        limits = msgspec.structs.replace(BETWEEN_NODES, sessions=MOST_LINKS)
        self._wire = WireServer(port, self._identify, node=node, epoch=epoch, limits=limits)
        self._runner: web.AppRunner | None = None
        self._servers: list[asyncio.Server] = []

    async def open(self, sockets: list[socket.socket]) -> None:
        """Let others come through `sockets`, which belong to the door from here on."""
        app = web.Application()
        app.add_routes([web.get("/mk", self._handle)])
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await self._runner.setup()
        assert self._runner.server is not None
        for each in sockets:
            server = await asyncio.get_running_loop().create_server(
                self._runner.server,
                sock=each,
                ssl=None if self._encryption is None else self._encryption.tls.context,
                ssl_handshake_timeout=None if self._encryption is None else HANDSHAKE_TIMEOUT,
            )
            self._servers.append(server)

    def end_node(self, node: str, why: str) -> None:
        """Close the links of a node: what it has running here ends."""
        self._wire.end_node(node, why)

    async def drained(self) -> None:
        """Return when each of the others had nothing running here at a time."""
        await self._wire.drained()

    async def close(self, drain: float) -> None:
        """Close the door; links end once what runs over them has, after `drain` seconds at the latest."""
        for server in self._servers:
            server.close()
        await self._wire.close("the node leaves the cluster", after=1.0, drain=drain)
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        peer = None
        if self._encryption is not None and request.transport is not None:
            peer = self._encryption.peer(request.transport)
            if peer is not None and self._encryption.refusals.covers(peer):
                self._log.warning("node '%s' was removed from the cluster and is not let in", peer.node)
                return web.Response(status=403, text="this node was removed from the cluster\n")
        _peer.set(peer)
        return await self._wire.handle(request)

    async def _identify(self, token: str) -> Identity | None:
        """Who comes."""
        if not token.startswith(PREFIX):
            found = await self._authenticate(token)
            if found is None or not found.rights.permits("cluster.join"):
                return None
            return msgspec.structs.replace(found, rights=JOINING)
        passport = read_passport(token, self._secret)
        if passport is None:
            return None
        if self._encryption is not None:
            peer = _peer.get()
            if peer is None or peer.node != passport.node:
                shown = "none" if peer is None else f"that of '{peer.node}'"
                raise Unauthenticated(f"node '{passport.node}' has to show its certificate, not {shown}")
        rights = BURIED if self._is_buried(passport.node, passport.life) else ALL
        return Identity("node", rights, node=passport.node)
