"""Starts a node of ours on each node of a Ray cluster, by an agent there.

Ray finds the place and tells of nodes that come and go. All else, from the first message on, goes over our own links.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from drivers.ray.bridge_process import BridgeProcess
from drivers.ray.orders import Connect, End, Ended, Look, Run, Seen
from drivers.ray.settings import RaySettings, bridge_environment, checked
from microkernel.errors import PreconditionFailed
from microkernel.launcher import Launcher, Machine, NodeStart

__all__ = ["RayLauncher"]

CLOSING = 4.0  # seconds; a service has five to stop


class RayLauncher(Launcher):
    """The machines of a Ray cluster."""

    name = "ray"
    Settings = RaySettings
    settings: RaySettings

    async def open(self, owner: str, folder: Path) -> None:
        """Look whether there is Ray here, and whether the settings can be."""
        settings = checked(self.settings)
        bridge_environment(settings, os.environ)
        if importlib.util.find_spec("ray") is None:
            raise PreconditionFailed("Ray is not installed here", remedy="pip install 'microkernel[ray]'")
        self._bridge = BridgeProcess(
            connect=lambda number: Connect(number, settings, owner),
            environment=lambda: bridge_environment(settings, os.environ),
            log=folder / "bridge.log",
        )

    async def machines(self) -> Sequence[Machine]:
        """The nodes of the Ray cluster that have what one of ours asks for."""
        answer = await self._bridge.ask(Look)
        assert isinstance(answer, Seen)
        return answer.machines

    async def run(self, machine: str, start: NodeStart) -> str:
        """Have an agent there that runs it; an agent that is there already is only listened to."""
        numbers: list[int] = []

        def order(number: int) -> Run:
            numbers.append(number)
            return Run(number, machine, start)

        try:
            answer = await self._bridge.ask(order, patience=None)
        except asyncio.CancelledError:
            for number in numbers:
                self._bridge.tell(End(number))
            raise
        assert isinstance(answer, Ended)
        return answer.how

    async def close(self) -> None:
        """Have all agents end their nodes, and themselves."""
        await self._bridge.close(CLOSING)
