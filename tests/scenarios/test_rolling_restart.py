"""Three nodes that joined each other are booted anew in turn, each with clients of its own, and no call fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from node_process import environment

import microkernel

pytestmark = pytest.mark.timeout(300)

NODES = ("n1", "n2", "n3")
STEADY = '''
import asyncio

from microkernel import Service, handles


class Steady(Service):
    """Any node will do."""

    name = "steady"
    replicas = 2

    @handles(idempotent=True)
    async def double(self, message: int) -> int:
        await asyncio.sleep(0.005)
        return 2 * message
'''
CONFIG = """
node = "{name}"
disable = ["inference", "models", "memory", "filesystem", "backup"]
plugins = ["{service}"]

[services.gateway]
port = {port}

[services.cluster]
port = {cluster}
{joins}
"""


class BootedNode:
    """A node that can be booted again on its folder and its ports."""

    def __init__(self, folder: Path, name: str, config: str) -> None:
        self.name = name
        self.root = folder / "root"
        self._folder = folder
        folder.mkdir()
        (folder / "config.toml").write_text(config)
        self._process: subprocess.Popen[str] | None = None

    def boot(self) -> None:
        """Return when it is ready."""
        words = ["boot", "--config", str(self._folder / "config.toml"), "--root", str(self.root), "--json"]
        with (self._folder / "stderr").open("a") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "microkernel", *words],
                env=environment(self._folder),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if json.loads(line)["event"] == "ready":
                return
        self._process.communicate()
        self._process = None
        pytest.fail(f"{self.name} ended: {(self._folder / 'stderr').read_text()}")

    def end(self) -> None:
        """SIGTERM, and wait for what it has to finish."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.communicate()
            assert self._process.returncode == 0, (self._folder / "stderr").read_text()
            self._process = None


def ports(count: int) -> list[int]:
    """Free ones, below those that the system gives to who dials, and not those that a test beside this one takes."""
    taken = {each.laddr.port for each in psutil.net_connections("tcp")}
    free = [port for port in range(21_000, 30_000) if port not in taken]
    return random.Random(os.getpid()).sample(free, count)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[dict[str, BootedNode]]:
    service = tmp_path / "steady.py"
    service.write_text(STEADY)
    free = iter(ports(2 * len(NODES)))
    made: dict[str, BootedNode] = {}
    first = 0
    secret = tmp_path / "join"
    secret.write_text("0123456789abcdef" * 4)
    with contextlib.ExitStack() as ends:
        for name in NODES:
            own = {"service": service, "port": next(free), "cluster": next(free)}
            joins = f'join_secret = "{secret}"\n'
            first = own["cluster"] if not made else first
            joins += f'join = ["127.0.0.1:{first}"]' if made else ""
            made[name] = BootedNode(tmp_path / name, name, CONFIG.format(name=name, joins=joins, **own))
            ends.callback(made[name].end)
            made[name].boot()
        yield made


async def all_there(system: Any, *, above: dict[str, int] | None = None) -> dict[str, int]:
    """Return when the node sees all three, with higher incarnations than `above`: these."""
    async with asyncio.timeout(60):
        while True:
            found = {each.node: each for each in await system.call("cluster.list") if each.state == "alive"}
            lives = {name: node.incarnation for name, node in found.items()}
            if set(found) == set(NODES) and all(lives[name] > life for name, life in (above or {}).items()):
                return lives
            await asyncio.sleep(0.05)


async def test_no_idempotent_call_fails_while_all_three_are_booted_anew_in_turn(nodes: dict[str, BootedNode]) -> None:
    over, done = asyncio.Event(), Counter[str]()

    async def works(system: Any, client: str, number: int) -> None:
        while not over.is_set():
            assert await system.call("steady.double", number) == 2 * number
            done[client] += 1

    async with contextlib.AsyncExitStack() as stack:
        systems = {name: [await stack.enter_async_context(microkernel.connect(root=nodes[name].root)) for _ in range(2)]
                   for name in NODES}  # fmt: skip
        async with asyncio.TaskGroup() as group:
            for name, clients in systems.items():
                for place, system in enumerate(clients):
                    group.create_task(works(system, f"{name}/{place}", len(name) + place))
            for name in NODES:
                other = next(systems[each][0] for each in NODES if each != name)
                lives = await all_there(other)
                await asyncio.to_thread(nodes[name].end)
                await asyncio.to_thread(nodes[name].boot)
                await all_there(other, above={name: lives[name]})
            before = Counter(done)
            async with asyncio.timeout(60):
                while min((done - before).values(), default=0) < 20 or len(done - before) < len(done):
                    await asyncio.sleep(0.05)
            over.set()
    assert len(done) == 2 * len(NODES)
