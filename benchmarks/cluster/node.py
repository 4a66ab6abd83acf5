"""A node of a cluster, in a process of its own: it founds one, or joins the one whose address it is given."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from benchmarks.messages.process import split_address
from microkernel.config import Config
from microkernel.executor import Executor
from microkernel.service import Service
from microkernel.testing import TestKernel
from services.cluster.messages import ClusterNode, Invitation
from services.cluster.service import Cluster
from services.devices.service import Devices

__all__ = ["PATIENCE", "Member"]

PATIENCE = 60.0  # seconds until nodes that start are there
GLANCE = 0.005  # seconds between two looks at who is there


class Member:
    """Has the cluster service and `services`. An address is a URL and a join token, with a space between."""

    services: ClassVar[tuple[type[Service], ...]] = ()
    settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    name = "n1"

    def __init__(self, address: str = "") -> None:
        self._invitation = split_address(address)
        self.system: TestKernel

    async def start(self) -> None:
        """Boot. Without a service that finds devices, it gets a compute thread as every node has one."""
        url, token = self._invitation
        settings: dict[str, Any] = {**self.settings}
        if url:
            settings["cluster"] = {**settings.get("cluster", {}), "join": (url,), "token": token}
        config = msgspec.structs.replace(Config(), node=self.name, joins=bool(url))
        self.system = TestKernel(Cluster, *self.services, config=config, settings=settings)
        await self.system.__aenter__()
        if Devices in self.services:
            await self.system.call("devices.list")  # it answers when all are there
        else:
            await self.system.kernel.executors.add(Executor("cpu0"))

    async def stop(self) -> None:
        """Leave."""
        await self.system.__aexit__(None, None, None)

    async def address(self) -> str:
        """What lets others join, for an hour."""
        invitation: Invitation = await self.system.call("cluster.invite")
        return f"{invitation.url} {invitation.token}"

    async def until(self, count: int, service: str, *, loaded: bool = False) -> list[ClusterNode]:
        """Return when so many nodes are alive and have told that they answer a service, and that they have a model
        where it is to be `loaded`. Raises TimeoutError.
        """
        async with asyncio.timeout(PATIENCE):
            while True:
                nodes: list[ClusterNode] = await self.system.call("cluster.list")
                found = [each for each in nodes if each.state == "alive" and service in each.services]
                if len(found) == count and (not loaded or all(each.models for each in found)):
                    return found
                await asyncio.sleep(GLANCE)
