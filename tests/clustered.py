"""Nodes of one process that form a cluster over real websockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from linked_nodes import Among

from microkernel import Service
from microkernel.config import Config
from microkernel.testing import TestKernel
from services.cluster.messages import ClusterNode
from services.cluster.service import Cluster

PATIENCE = 20.0  # seconds until a test gives up


class Clustered:
    """Nodes that come and go."""

    def __init__(self) -> None:
        self.nodes: dict[str, TestKernel] = {}
        self._stacks: dict[str, AsyncExitStack] = {}
        self._first: str | None = None

    async def found(self, name: str, *services: type[Service] | Service, **settings: Any) -> TestKernel:
        """The first node."""
        self._first = name
        return await self._boot(name, services, settings, joins=False)

    async def join(
        self, name: str, *services: type[Service] | Service, root: Path | None = None, **settings: Any
    ) -> TestKernel:
        """One more node, which is invited by the first."""
        assert self._first is not None
        invitation = await self.nodes[self._first].call("cluster.invite")
        own = {"join": (invitation.url,), "token": invitation.token, **settings.pop("cluster", {})}
        return await self._boot(name, services, {"cluster": own, **settings}, joins=True, root=root)

    async def stop(self, name: str) -> None:
        """A node leaves in good order."""
        del self.nodes[name]
        await self._stacks.pop(name).aclose()

    async def until(self, name: str, seen: Callable[[dict[str, ClusterNode]], bool]) -> dict[str, ClusterNode]:
        """Return when a node sees the others so."""
        async with asyncio.timeout(PATIENCE):
            while True:
                found = {each.node: each for each in await self.nodes[name].call("cluster.list")}
                if seen(found):
                    return found
                await asyncio.sleep(0.01)

    async def all_see(self, *names: str, state: str = "alive") -> None:
        """Return when all nodes see those that are named as `state`, and no other as alive."""
        for name in self.nodes:
            await self.until(
                name, lambda seen: {each.node for each in seen.values() if each.state == state} == set(names)
            )

    async def close(self) -> None:
        for name in reversed(list(self.nodes)):
            await self.stop(name)

    async def _boot(
        self,
        name: str,
        services: tuple[type[Service] | Service, ...],
        settings: dict[str, Any],
        *,
        joins: bool,
        root: Path | None = None,
    ) -> TestKernel:
        stack = AsyncExitStack()
        config = msgspec.structs.replace(Config(), node=name, joins=joins)
        node = Among(Cluster, *services, config=config, settings=settings, root=root)
        self.nodes[name] = await stack.enter_async_context(node)
        self._stacks[name] = stack
        return node


@asynccontextmanager
async def clustered() -> AsyncIterator[Clustered]:
    cluster = Clustered()
    try:
        yield cluster
    finally:
        await cluster.close()
