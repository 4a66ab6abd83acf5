"""Nodes of one loop that reach each other over real websockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.test_utils import TestServer

from microkernel import Service
from microkernel.capability import ALL, Identity
from microkernel.config import Config
from microkernel.registry import ServiceState
from microkernel.service import handlers_of
from microkernel.testing import TestKernel
from microkernel.wire.node_link import BETWEEN_NODES, NodeLink
from microkernel.wire.server import WireServer

TOKEN = "a-token-between-nodes"


class Among(TestKernel):
    """A node that ends before others of its loop do: whose a task is that is left, only the last one can say."""

    def _assert_nothing_left(self, open_calls: dict[str, int]) -> None:
        assert not open_calls, f"calls were left open: {open_calls}"


class LinkedNode:
    """One node, and the door through which the others come."""

    def __init__(self, name: str, kernel: TestKernel, server: TestServer, wire: WireServer) -> None:
        self.name = name
        self.kernel = kernel
        self.wire = wire
        self.url = f"ws://127.0.0.1:{server.port}/mk"
        self.links: list[NodeLink] = []

    @property
    def nodes(self) -> Any:
        return self.kernel.kernel.router.nodes

    async def call(self, to: str, message: Any = None, /, **fields: Any) -> Any:
        return await self.kernel.call(to, message, **fields)

    def knows(self, other: LinkedNode, *services: str, **told: Any) -> None:
        """Have this node reach another one, where `services` answer."""

        async def dial() -> NodeLink:
            link = NodeLink(other.url, f"{TOKEN} {self.name}")
            await link.start()
            self.links.append(link)
            return link

        neighbour = self.nodes.get(other.name) or self.nodes.attach(other.name, dial)
        self.nodes.offer(neighbour, frozenset(services), **told)

    def installs(self, kind: type[Service]) -> None:
        """Have a service known here that is for others to answer."""
        entry = self.kernel.kernel.router.registry.add(kind.name)
        entry.kind, entry.state = kind, ServiceState.ELSEWHERE
        methods = frozenset(handler.name for handler in handlers_of(kind) if handler.anywhere)
        self.nodes.share(kind.name, methods)

    async def forgets(self, other: LinkedNode) -> None:
        await self.nodes.detach(other.name, "was lost in a test").aclose()

    def break_links(self) -> None:
        """The connections that this node has opened are gone without a word."""
        for link in self.links:
            pump = link._connection._pump
            if pump is not None:
                pump._socket._response.connection.transport.abort()


@asynccontextmanager
async def linked(*services: tuple[type[Service] | Service, ...], **config: Any) -> AsyncIterator[list[LinkedNode]]:
    """A node for each tuple of services: n1, n2, …; none knows another one yet."""
    async with AsyncExitStack() as kernels, AsyncExitStack() as doors:  # no door is open when the first kernel ends
        nodes: list[LinkedNode] = []
        for number, own in enumerate(services, 1):
            name = f"n{number}"

            async def authenticate(token: str) -> Identity | None:
                shown, _, caller = token.partition(" ")
                return Identity("node", ALL, node=caller) if shown == TOKEN else None

            here = {service.name for service in own}
            mine = {key: value for key, value in config.items() if key != "services"}
            sections = {key: value for key, value in config.get("services", {}).items() if key in here}
            settings = msgspec.structs.replace(Config(), node=name, services=sections, **mine)
            kind = Among if nodes else TestKernel
            kernel = await kernels.enter_async_context(kind(*own, config=settings))
            wire = WireServer(kernel.kernel.port, authenticate, node=name, epoch="e1", limits=BETWEEN_NODES)
            app = web.Application()
            app.router.add_get("/mk", wire.handle)
            server = await doors.enter_async_context(TestServer(app, host="127.0.0.1"))
            doors.push_async_callback(wire.close, drain=0.0)
            nodes.append(LinkedNode(name, kernel, server, wire))
        try:
            yield nodes
        finally:
            for node in nodes:
                for other in tuple(node.nodes):
                    await node.nodes.detach(other.node, "the test has ended").aclose()
                for link in node.links:
                    await link.aclose()
