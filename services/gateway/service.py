"""The gateway: everything that comes over HTTP to this node, on one port."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import ClassVar

from aiohttp import web

from microkernel.capability import Identity, Revoked
from microkernel.events import Event
from microkernel.introspection import NodeStatus
from microkernel.message import Message, convert
from microkernel.rates import Rates
from microkernel.service import Placement, Service, handles, on
from microkernel.wire.listening import is_loopback, open_sockets
from microkernel.wire.server import WireServer
from services.gateway.bodies import Bodies
from services.gateway.chat_route import ChatRoute
from services.gateway.connections import Connections
from services.gateway.door import PEER, Door
from services.gateway.embeddings_route import EmbeddingsRoute
from services.gateway.encryption import HANDSHAKE_TIMEOUT, server_context
from services.gateway.health_route import HealthRoutes
from services.gateway.listen import address_of
from services.gateway.messages import Address
from services.gateway.models_route import list_models, show_model
from services.gateway.settings import GatewaySettings

__all__ = ["Gateway"]

HEAD_LIMIT = 16 * 1024  # bytes of a request line, and of one header
CUT_TIMEOUT = 0.5  # seconds that what was cut has to end; used twice


class Gateway(Service):
    """Speaks to the world: the OpenAI API over HTTP, `mk.v1` websockets, and health, on one port."""

    name = "gateway"
    placement = Placement.NODE
    uses = ("*", "cluster")  # clients leave first: what they still have running may be on other nodes
    essential = True
    Settings: ClassVar[type[Message]] = GatewaySettings
    settings: GatewaySettings

    async def start(self) -> None:
        """Listen. Raises `PreconditionFailed` that says what to do where the port is taken."""
        status = convert(await self.call("kernel.status"), NodeStatus, what="kernel.status")
        sockets = await open_sockets(self.settings.host, self.settings.port)
        self._servers: list[asyncio.Server] = []
        try:
            local = is_loopback(sockets)
            settings = self.settings
            encryption = await asyncio.to_thread(server_context, settings.certificate, settings.key)
            self._address = address_of(settings.host, sockets, settings.certificate)
            self._runner = self._make_runner(status.epoch, local=local)
            await self._runner.setup()
            self._connections = self._make_connections()
            for each in sockets:
                self._servers.append(await self._listen(each, encryption))
        except BaseException:
            for each in sockets:
                each.close()
            raise
        if not local and encryption is None:
            self.log.warning(
                "%s can be reached from other machines and is not encrypted: tokens and texts can be read on the way",
                ", ".join(self._address.urls),
            )
        self.log.info("listening on %s", ", ".join(self._address.urls))
        self.publish("gateway.listening", self._address)

    async def stop(self) -> None:
        """Close the door, let what runs end for a moment, end the rest; returns when every connection is closed."""
        for server in self._servers:
            server.close()
        self._door.closed = True
        seconds = self.settings.drain_seconds
        async with asyncio.TaskGroup() as endings:
            endings.create_task(self._chats.drain(seconds))
            endings.create_task(self._wire.close("the gateway stops", after=1.0, drain=seconds))
        await self._runner.cleanup()
        await self._chats.close()
        await self._embeddings.close()
        late = await self._connections.ended(CUT_TIMEOUT)
        if late:
            self.log.warning("%d connections hold on after they were closed", late)

    @handles(idempotent=True)
    async def address(self) -> Address:
        """Where the gateway listens."""
        return self._address

    @on("kernel.token.revoked")
    async def end_revoked(self, event: Event) -> None:
        """What is being answered for a token that is not valid any more ends."""
        revoked = convert(event.body, Revoked, what=event.subject)
        self._door.revoked(revoked)
        await self._wire.revoked(revoked)

    def _make_runner(self, epoch: str, *, local: bool) -> web.AppRunner:
        settings = self.settings
        bodies = Bodies(limit=settings.body_limit, total=settings.bodies_limit, seconds=settings.body_seconds)
        self._chats = ChatRoute(settings, bodies, self.log)
        self._embeddings = EmbeddingsRoute(settings, bodies)
        rates = Rates()
        self._door = Door(
            self.port,
            self._authenticate,
            hosts={settings.host, *settings.allowed_hosts} if local else None,
            origins=settings.allowed_origins,
            rates=rates,
            log=self.log,
        )
        self._wire = WireServer(
            self.port,
            self._authenticate,
            node=self.node,
            epoch=epoch,
            limits=settings.wire,
            allowed_origins=settings.allowed_origins,
            rates=rates,
        )
        health = HealthRoutes(self.port, self._door.knows)
        app = web.Application(middlewares=[self._door.middleware])
        app.on_response_prepare.append(self._door.prepare)
        app.add_routes(
            [
                web.get("/", health.about),
                web.get("/livez", health.livez),
                web.get("/readyz", health.readyz),
                web.get("/mk", self._wire.handle),
                web.get("/v1/models", list_models),
                web.get("/v1/models/{name:.+}", show_model),
                web.post("/v1/chat/completions", self._chats.answer),
                web.post("/v1/embeddings", self._embeddings.answer),
            ]
        )
        # A closed connection ends its answer at once.
        return web.AppRunner(app, handler_cancellation=True, shutdown_timeout=CUT_TIMEOUT)

    async def _listen(self, on: socket.socket, encryption: ssl.SSLContext | None) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(
            self._connections,
            sock=on,
            ssl=encryption,
            ssl_handshake_timeout=None if encryption is None else HANDSHAKE_TIMEOUT,
        )

    def _make_connections(self) -> Connections:
        assert self._runner.server is not None
        return Connections(
            self._runner.server,
            limit=self.settings.connections,
            access_log=None,
            logger=self.log,
            keepalive_timeout=self.settings.idle_seconds,
            lingering_time=CUT_TIMEOUT,
            max_line_size=HEAD_LIMIT,
            max_field_size=HEAD_LIMIT,
        )

    async def _authenticate(self, token: str) -> Identity | None:
        found = await self.call("kernel.authenticate", token=token, peer=PEER.get())
        return None if found is None else convert(found, Identity, what="kernel.authenticate")
