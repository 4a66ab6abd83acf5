"""The gateway: everything that comes over HTTP to this node, on one port."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from aiohttp import web

from microkernel.capability import Identity
from microkernel.errors import Unauthenticated
from microkernel.introspection import NodeStatus
from microkernel.message import Message, convert
from microkernel.service import Service, handles
from microkernel.wire.server import WireServer
from services.gateway.bodies import Bodies
from services.gateway.chat_route import ChatRoute
from services.gateway.connections import Connections
from services.gateway.door import Door
from services.gateway.health_route import HealthRoutes
from services.gateway.listen import address_of, is_loopback, open_sockets
from services.gateway.messages import Address
from services.gateway.models_route import list_models, show_model
from services.gateway.settings import GatewaySettings

__all__ = ["Gateway"]

HEAD_LIMIT = 16 * 1024  # bytes of a request line, and of one header
CUT_TIMEOUT = 0.5  # seconds that what was cut has to end; used twice


class Gateway(Service):
    """Speaks to the world: the OpenAI API over HTTP, `mk.v1` websockets, and health, on one port."""

    name = "gateway"
    uses = ("*",)
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
            self._address = address_of(self.settings.host, sockets)
            self._runner = self._make_runner(status.epoch, local=local)
            await self._runner.setup()
            self._connections = self._make_connections()
            for each in sockets:
                self._servers.append(await asyncio.get_running_loop().create_server(self._connections, sock=each))
        except BaseException:
            for each in sockets:
                each.close()
            raise
        if not local:
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
        late = await self._connections.ended(CUT_TIMEOUT)
        if late:
            self.log.warning("%d connections hold on after they were closed", late)

    @handles(idempotent=True)
    async def address(self) -> Address:
        """Where the gateway listens."""
        return self._address

    def _make_runner(self, epoch: str, *, local: bool) -> web.AppRunner:
        settings = self.settings
        self._chats = ChatRoute(
            settings,
            Bodies(limit=settings.body_limit, total=settings.bodies_limit, seconds=settings.body_seconds),
            self.log,
        )
        self._door = Door(
            self.port,
            self._authenticate,
            hosts={settings.host, *settings.allowed_hosts} if local else None,
            origins=settings.allowed_origins,
            log=self.log,
        )
        self._wire = WireServer(
            self.port, self._authenticate_now, node=self.node, epoch=epoch, allowed_origins=settings.allowed_origins
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
            ]
        )
        # A closed connection ends its answer at once.
        return web.AppRunner(app, handler_cancellation=True, shutdown_timeout=CUT_TIMEOUT)

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
        found = await self.call("kernel.authenticate", token=token)
        return None if found is None else convert(found, Identity, what="kernel.authenticate")

    def _authenticate_now(self, token: str) -> Identity | None:
        """The same for the websocket, whose handshake does not wait: the kernel answers without suspending."""
        asking = self._authenticate(token)
        try:
            asking.send(None)
        except StopIteration as done:
            identity: Identity | None = done.value
            return identity
        asking.close()
        raise Unauthenticated("tokens cannot be checked at this moment", remedy="come back in a second")
