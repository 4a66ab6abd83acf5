"""Two machines with a network between them, as the system's network namespaces play them."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_cluster import ENVIRONMENT, PATIENCE

pytest.importorskip("ray")
pytestmark = [pytest.mark.peer, pytest.mark.timeout(900)]

HERE, THERE = "10.77.0.1", "10.77.0.2"


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class TwoMachines:
    """`HERE` and `THERE`, and the cable between them."""

    def __init__(self) -> None:
        mark = secrets.token_hex(3)
        self.here, self.there = f"mkh{mark}", f"mkt{mark}"
        self.folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
        for space in (self.here, self.there):
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
        ip("-n", self.here, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", self.there)
        for space, address in ((self.here, HERE), (self.there, THERE)):
            ip("-n", space, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", space, "link", "set", "cable", "up")

    def on(self, space: str, *words: str) -> list[str]:
        return ["ip", "netns", "exec", space, *words]

    def start_ray(self, space: str, *words: str) -> None:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", "--object-store-memory=100000000"]
        environment = {**os.environ, **ENVIRONMENT}
        subprocess.run(self.on(space, *ray, *words), check=True, capture_output=True, env=environment, timeout=PATIENCE)

    def plug(self, state: str) -> None:
        ip("-n", self.there, "link", "set", "cable", state)

    def close(self) -> None:
        for space in (self.here, self.there):
            pids = ip("netns", "pids", space).split()
            if pids:
                subprocess.run(["kill", "-9", *pids], check=False, capture_output=True)
            ip("netns", "delete", space)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def machines() -> Iterator[TwoMachines]:
    try:
        ip("netns", "add", f"mkp{os.getpid()}")
        ip("netns", "delete", f"mkp{os.getpid()}")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces are not to be had: {error}")
    made = TwoMachines()
    try:
        made.start_ray(
            *(made.here, "--head", f"--node-ip-address={HERE}", "--port=6379"),
            *("--include-dashboard=false", f"--temp-dir={made.folder}"),
        )
        made.start_ray(made.there, f"--address={HERE}:6379", f"--node-ip-address={THERE}")
        yield made
    finally:
        made.close()


class FirstNode:
    """The node that starts the others, in a process on the first machine."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, what: str) -> Any:
        self._process.stdin.write(what.encode() + b"\n")
        line = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE)
        assert line, "the first node has ended"
        return json.loads(line)

    async def until(self, states: dict[str, str]) -> float:
        """Seconds until nodes at these addresses are seen so."""
        began = time.monotonic()
        while (found := await self.ask("nodes")) != states:
            assert time.monotonic() - began < PATIENCE, found
            await asyncio.sleep(0.1)
        return time.monotonic() - began


async def test_a_network_that_is_gone_is_noticed_by_us_while_ray_still_waits(machines: TwoMachines) -> None:
    process = await asyncio.create_subprocess_exec(
        *machines.on(machines.here, sys.executable, "-c", FIRST, str(machines.folder / "first")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **ENVIRONMENT},
    )
    try:
        first = FirstNode(process)
        await first.until({HERE: "alive", THERE: "alive"})
        assert await first.ask("map") == [item * item for item in range(40)]
        machines.plug("down")
        took = await first.until({HERE: "alive", THERE: "dead"})
        assert THERE in await first.ask("ray"), "Ray knows by now"
        assert took < 30, "Ray takes longer than a minute"
        assert await first.ask("map") == [item * item for item in range(40)]
        machines.plug("up")
        await first.until({HERE: "alive", THERE: "alive"})
        assert await first.ask("map") == [item * item for item in range(40)]
    finally:
        process.stdin.close()
        await asyncio.wait_for(process.wait(), PATIENCE)


FIRST = """
import asyncio, json, sys
from pathlib import Path
from urllib.parse import urlsplit
from on_ray import LAUNCHED, Plugin, RayLauncher, launched_nodes
from linked_nodes import Among
from microkernel.config import Config
from services.cluster.service import Cluster
from services.devices.service import Devices
from services.scheduler.service import Scheduler

launchers = []

class Noted(RayLauncher):
    async def open(self, owner, folder):
        launchers.append(self)
        await super().open(owner, folder)

async def discover(names):
    return [Plugin("ray", "test", kind=Noted)]

async def main():
    folder = Path(sys.argv[1])
    launched_nodes.discover_launchers = discover
    own = {"address": "10.77.0.1:6379", "root": str(folder / "far"), "num_cpus": 0.5}
    cluster = {"host": "10.77.0.1", "launchers": {"ray": own}, "launched": LAUNCHED}
    settings = {"cluster": cluster, "devices": {"without": ["cuda", "mps", "xpu"], "tune_after": 0}}
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    named = Config(node="n1")
    async with Among(Cluster, Devices, Scheduler, config=named, root=folder / "near", settings=settings) as node:
        while line := await lines.readline():
            match line.strip().decode():
                case "nodes":
                    found = [each for each in await node.call("cluster.list") if not each.is_here]
                    ready = [each for each in found if each.state != "alive" or "scheduler" in each.services]
                    answer = {urlsplit(each.address).hostname: each.state for each in ready}
                case "map":
                    for each in await node.call("cluster.list"):
                        if each.state == "alive":
                            await node.call(f"devices.list@{each.node}")  # waits until they are found
                    answer = await node.call("scheduler.map", function="mapped:square", items=list(range(40)), tasks=40)
                case "ray":
                    answer = [each.address for each in await launchers[0].machines()]
            print(json.dumps(answer), flush=True)

asyncio.run(main())
"""
