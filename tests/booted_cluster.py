"""A cluster of real processes on this machine: one node, and the workers that it keeps running."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil

import microkernel as mk

PATIENCE = 60.0  # seconds until a test gives up
HERE = Path(__file__).parent


class BootedCluster:
    """`node0`, and the workers `node0-1`, `node0-2`, …; made by `booted_cluster`."""

    def __init__(self, root: Path, process: subprocess.Popen[str]) -> None:
        self.root = root
        self.process = process
        self.complaints = root.parent / "stderr"

    def connect(self) -> AbstractAsyncContextManager[Any]:
        """A client of the first node."""
        return mk.connect(root=self.root)

    def worker(self, node: str) -> psutil.Process:
        """The process of a worker as it is now."""
        folder = str(self.root / "cluster" / "workers" / node)
        for child in psutil.Process(self.process.pid).children():
            if folder in child.cmdline():
                return child
        raise LookupError(f"no process of {node}: {self.last_words(node)}")

    def last_words(self, node: str) -> str:
        """What a worker has printed."""
        log = self.root / "cluster" / "workers" / node / "output.log"
        return log.read_text() if log.exists() else ""

    def wait_until_ready(self) -> None:
        """Return when the first node is there. Fails with what it said when it ends before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if json.loads(line)["event"] == "ready":
                break
        else:
            raise AssertionError(f"the boot ended: {self.complaints.read_text()}")
        # What it says later goes nowhere, rather than fill the pipe up.
        threading.Thread(target=self.process.stdout.read, name="what the node says", daemon=True).start()


@contextmanager
def booted_cluster(folder: Path, *arguments: str, **environment: str) -> Iterator[BootedCluster]:
    """A node that boots in `folder`; its workers are not there yet."""
    root = folder / "root"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MICROKERNEL_")}
    search = os.pathsep.join(filter(None, (str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", ""))))
    given = ["--root", str(root), "--port", "0", "--json", *arguments]
    with (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "microkernel", "boot", *given],
            env={**inherited, "HOME": str(folder), "PYTHONPATH": search, **environment},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    cluster = BootedCluster(root, process)
    try:
        cluster.wait_until_ready()
        yield cluster
    finally:
        _end(process)


async def seen(
    system: Any, wanted: Callable[[dict[str, Any]], bool], at: str = "cluster.list", patience: float = PATIENCE
) -> dict[str, Any]:
    """Return when a node sees the cluster as `wanted`; its members by name."""
    found: dict[str, Any] = {}
    try:
        async with asyncio.timeout(patience):
            while True:
                found = {each.node: each for each in await system.call(at)}
                if wanted(found):
                    return found
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it is seen otherwise: {found}") from None


def all_alive(*services: str, count: int = 3) -> Callable[[dict[str, Any]], bool]:
    """Whether so many nodes are alive, and each answers `services`."""

    def wanted(nodes: dict[str, Any]) -> bool:
        alive = [each for each in nodes.values() if each.state == "alive"]
        return len(alive) == count and all({*services} <= {*each.services} for each in alive)

    return wanted


def _end(process: subprocess.Popen[str]) -> None:
    children = psutil.Process(process.pid).children() if process.poll() is None else []
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:  # its workers end with it; none outlives the test in any case
        if child.is_running():
            child.kill()
    if process.stdout is not None:
        process.stdout.close()
