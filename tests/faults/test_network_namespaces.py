"""Nodes as on machines of their own: a network namespace each, a bridge between them, and cables that are pulled."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NODES = {"a": "10.77.0.1", "b": "10.77.0.2", "c": "10.77.0.3"}
BRIDGE = "mkt-bridge"
PATIENCE = 60.0  # seconds

COUNTS = '''
from microkernel import Service, handles
from microkernel.service import Placement


class Counts(Service):
    """Each node has its own."""

    name = "counts"
    placement = Placement.NODE

    @handles
    async def own(self) -> str:
        return self.node

    @handles(idempotent=True, anywhere=True)
    async def anywhere(self) -> str:
        return self.node
'''


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def bridged() -> Iterator[None]:
    """Three machines, as far as the network goes. Skips where the system does not allow that."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip`")
    with ExitStack() as made:
        try:
            ip("link", "add", BRIDGE, "type", "bridge")
            made.callback(ip, "link", "del", BRIDGE)
            ip("link", "set", BRIDGE, "up")
            for name, address in NODES.items():
                ip("netns", "add", space(name))
                made.callback(ip, "netns", "del", space(name))
                ip("link", "add", cable(name), "type", "veth", "peer", "name", "e0", "netns", space(name))
                made.callback(ip, "link", "del", cable(name))  # with its space it would go some time later
                ip("link", "set", cable(name), "master", BRIDGE, "up")
                ip("-n", space(name), "addr", "add", f"{address}/24", "dev", "e0")
                for device in ("e0", "lo"):
                    ip("-n", space(name), "link", "set", device, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        yield


def space(name: str) -> str:
    return f"mkt-{name}"


def cable(name: str) -> str:
    return f"mkt-cable-{name}"


class Machine:
    """One node, and commands that are typed beside it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.root = folder / name
        self.process: subprocess.Popen[bytes] | None = None
        self._output = folder / f"{name}.log"
        self._services = folder / "counts.py"

    def boot(self, *arguments: str) -> None:
        given = ["--cluster", f"{NODES[self.name]}:7071", "--node", self.name, "--port", "0", *arguments]
        without = [word for name in ("inference", "models", "filesystem", "memory") for word in ("--without", name)]
        command = self._command("boot", "--root", str(self.root), "--service", str(self._services), *given, *without)
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(),
                start_new_session=True,
            )

    def ask(self, *arguments: str) -> Any:
        """What a command prints. Raises `CalledProcessError`."""
        command = self._command("--root", str(self.root), "--json", *arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment())
        return json.loads(done.stdout)

    def until(self, wanted: Callable[[dict[str, dict[str, Any]]], bool]) -> dict[str, dict[str, Any]]:
        """Return when this node sees the cluster so."""
        ends, found = time.monotonic() + PATIENCE, {}
        while time.monotonic() < ends:
            try:
                found = {node["node"]: node for node in self.ask("nodes", "list")}
            except subprocess.CalledProcessError as error:
                assert self.process is not None
                assert self.process.poll() is None, self._output.read_text()
                found = {"error": {"why": error.stderr}}
            else:
                if wanted(found):
                    return found
            time.sleep(0.1)
        raise AssertionError(f"{self.name} sees {found}: {self._output.read_text()}")

    def end(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def _command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", space(self.name), sys.executable, "-m", "microkernel", *words]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MICROKERNEL_")}


def states(**wanted: str) -> Callable[[dict[str, dict[str, Any]]], bool]:
    """Whether nodes are in these states; one that is `gone` may not be in the table any more."""

    def are(nodes: dict[str, dict[str, Any]]) -> bool:
        found = {name: nodes[name]["state"] if name in nodes else "gone" for name in wanted}
        return all(
            found[name] == state or (state == "dead" and found[name] == "gone") for name, state in wanted.items()
        )

    return are


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[dict[str, Machine]]:
    """Three nodes, which know each other by certificates."""
    (tmp_path / "counts.py").write_text(COUNTS)
    found = {name: Machine(name, tmp_path) for name in NODES}
    with bridged(), ExitStack() as running:
        found["a"].boot()
        running.callback(found["a"].end)
        found["a"].until(states(a="alive"))
        for name in ("b", "c"):
            invitation = found["a"].ask("nodes", "invite")
            found[name].boot("--join", invitation["url"], "--token", invitation["token"])
            running.callback(found[name].end)
        for machine in found.values():
            machine.until(lambda nodes: states(a="alive", b="alive", c="alive")(nodes) and all_count(nodes))
        yield found


def all_count(nodes: dict[str, dict[str, Any]]) -> bool:
    return all("counts" in node["services"] for node in nodes.values())


def pull_out(name: str) -> None:
    """No carrier: the node can see that."""
    ip("link", "set", cable(name), "down")


def put_in(name: str) -> None:
    ip("link", "set", cable(name), "up")


def lose_silently(name: str) -> None:
    """Nothing arrives, and nobody is told."""
    ip("link", "set", cable(name), "nomaster")


def find_again(name: str) -> None:
    ip("link", "set", cable(name), "master", BRIDGE)


@pytest.mark.parametrize(
    ("cut", "heal"), [(pull_out, put_in), (lose_silently, find_again)], ids=["cable pulled", "packets lost"]
)
def test_a_machine_that_is_cut_off_is_dead_to_the_others_and_comes_back_with_a_new_life(
    machines: dict[str, Machine], cut: Callable[[str], None], heal: Callable[[str], None]
) -> None:
    a, b, c = machines.values()
    nodes = a.until(states(a="alive", b="alive", c="alive"))
    assert {node["address"].partition(":")[0] for node in nodes.values()} == {"wss"}
    assert a.ask("call", "counts.own@c") == "c"
    cut("c")
    for machine in (a, b):
        machine.until(states(a="alive", b="alive", c="dead"))
    c.until(states(a="dead", b="dead", c="alive"))
    with pytest.raises(subprocess.CalledProcessError):
        a.ask("call", "counts.own@c")
    assert {a.ask("call", "counts.anywhere") for _ in range(6)} <= {"a", "b"}
    assert c.ask("call", "counts.anywhere") == "c", "a node that is alone goes on for those who reach it"
    heal("c")
    for machine in (a, b, c):
        after = machine.until(states(a="alive", b="alive", c="alive"))
        assert after["c"]["incarnation"] > nodes["c"]["incarnation"], "the smaller part gave way"
        assert after["a"]["incarnation"] == nodes["a"]["incarnation"]
    assert a.ask("call", "counts.own@c") == "c"
    assert c.ask("call", "counts.own@a") == "a"
