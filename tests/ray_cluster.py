"""A real Ray cluster on this machine, a process for its head and each of its nodes, held by a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

PATIENCE = 120.0  # seconds until a test gives up
TESTS = Path(__file__).parent
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS))),  # of all that runs there
}


class RayCluster:
    """What tests do to it. Nodes are known by the first letters of their ids, as we call them."""

    def __init__(self, process: asyncio.subprocess.Process, folder: str, address: str, head: str) -> None:
        self._process = process
        self.folder = folder
        self.address = address
        self.head = head
        self.names = [head]

    async def add(self, **arguments: Any) -> str:
        """One more node."""
        self.names.append(await self._do("add", **arguments))
        return self.names[-1]

    async def kill(self, node: str) -> None:
        """SIGKILL for the process of a node that all others of it are children of."""
        await self._do("kill", node=node)

    async def remove(self, node: str) -> None:
        """A node ends in good order."""
        await self._do("remove", node=node)

    async def _do(self, what: str, **arguments: Any) -> Any:
        self._process.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
        return await answer(self._process)


async def answer(process: asyncio.subprocess.Process) -> Any:
    async with asyncio.timeout(PATIENCE):
        line = await process.stdout.readline()
    assert line, "the process that has the Ray cluster has ended"
    return json.loads(line)


@asynccontextmanager
async def ray_cluster(nodes: int = 1, *, environment: dict[str, str] | None = None) -> AsyncIterator[RayCluster]:
    """One of so many nodes, with a core each; gone at the end."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # below it are sockets, whose paths have to be short
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, folder),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, **ENVIRONMENT, **(environment or {})},
    )
    try:
        told = await answer(process)
        cluster = RayCluster(process, folder, told["address"], told["head"])
        for _ in range(nodes - 1):
            await cluster.add()
        yield cluster
    finally:
        process.stdin.close()
        async with asyncio.timeout(PATIENCE):
            await process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def serve(folder: str) -> None:
    """The process's own part: it does what it is told until its standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from ray.cluster_utils import Cluster

    def say(what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": folder}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = {cluster.head_node.node_id[:12]: cluster.head_node}
    say({"address": cluster.address, "head": cluster.head_node.node_id[:12]})
    for line in sys.stdin:
        order = json.loads(line)
        match order.pop("do"):
            case "add":
                node = cluster.add_node(**{"num_cpus": 1, **order})
                nodes[node.node_id[:12]] = node
                say(node.node_id[:12])
            case "kill":
                raylet = nodes[order["node"]].all_processes["raylet"][0].process
                raylet.kill()
                raylet.wait()  # a parent that is a zombie is taken for alive by its children
                say(None)
            case "remove":
                cluster.remove_node(nodes[order["node"]])
                say(None)
    cluster.shutdown()


if __name__ == "__main__":
    serve(sys.argv[1])
