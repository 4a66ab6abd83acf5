"""A node of this process whose other nodes are started by Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from linked_nodes import Among
from ray_cluster import PATIENCE, RayCluster

from drivers.ray.launcher import RayLauncher
from microkernel.config import Config
from microkernel.plugins import Plugin
from microkernel.testing import TestKernel
from services.cluster import launched_nodes
from services.cluster.messages import ClusterNode
from services.cluster.service import Cluster
from services.devices.service import Devices
from services.scheduler.service import Scheduler

# What others than the tested have to do costs seconds of every boot.
LAUNCHED = """
disable = ["filesystem", "gateway", "inference", "memory", "models", "monitor"]
services.devices.tune_after = 0
"""


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the entry point has it; the environment may be installed from an older tree."""

    async def discover(names: Sequence[str]) -> list[Plugin]:
        return [Plugin("ray", "test", kind=RayLauncher)] if "ray" in names else []

    monkeypatch.setattr(launched_nodes, "discover_launchers", discover)


@asynccontextmanager
async def on_ray(
    ray: RayCluster, folder: Path, *, root: Path | None = None, name: str = "n1", **settings: Any
) -> AsyncIterator[TestKernel]:
    """The first node; what those on Ray keep is below `folder`."""
    own = {"address": ray.address, "root": str(folder), **settings}
    kernel = Among(
        Cluster,
        Devices,
        Scheduler,
        config=Config(node=name),
        root=root,
        settings={
            "cluster": {"launchers": {"ray": own}, "launched": LAUNCHED},
            "devices": {"without": ("cuda", "mps", "xpu"), "tune_after": 0},
        },
    )
    async with kernel as node:
        yield node


async def until(node: TestKernel, seen: Callable[[dict[str, ClusterNode]], bool]) -> dict[str, ClusterNode]:
    """Return when the node sees the others so."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = {each.node: each for each in await node.call("cluster.list")}
            if seen(found):
                return found
            await asyncio.sleep(0.02)


async def all_there(node: TestKernel, *machines: str) -> None:
    """Return when there is a node that has found its devices on each of these nodes of Ray's, and on no other one."""
    names = {f"ray-{machine}" for machine in machines}

    def there(seen: dict[str, ClusterNode]) -> bool:
        alive = {each.node for each in seen.values() if each.state == "alive" and not each.is_here}
        return alive == names and all("scheduler" in seen[name].services for name in names)

    await until(node, there)
    for name in names:
        await node.call(f"devices.list@{name}")


def boots(folder: Path) -> dict[str, psutil.Process]:
    """The processes of nodes on Ray, by their names; and what speaks with Ray for a node below `folder`."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "--node" in words and any(str(folder) in word for word in words):
            found[words[words.index("--node") + 1]] = process
    return found


async def gone(process: psutil.Process) -> None:
    """Return when it has ended."""
    try:
        async with asyncio.timeout(PATIENCE):
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"{process} still runs: {process.cmdline()}, below {process.parents()}")
