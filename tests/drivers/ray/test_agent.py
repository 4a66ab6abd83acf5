"""What an agent does with its node, without Ray."""

from __future__ import annotations

import asyncio
import math
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from drivers.ray.agent import Agent, Placed
from microkernel.launcher import NodeStart

NOBODY = "http://127.0.0.1:1"  # where nobody lets a node in
LEAN = 'disable = ["devices", "filesystem", "gateway", "inference", "memory", "models", "monitor", "scheduler"]\n'


def placed(folder: Path, config: str = "", **more: object) -> Placed:
    start = NodeStart(node="ray-a", join=NOBODY, token="a-secret", config=LEAN + config)
    return Placed(start=start, folder=str(folder / "node"), models=str(folder / "models"), **more)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def agent() -> Iterator[Agent]:
    made = Agent(math.inf)
    yield made
    made._over.set()


async def child(agent: Agent) -> psutil.Process:
    async with asyncio.timeout(30):
        while agent._process is None:
            await asyncio.sleep(0.01)
    return psutil.Process(agent._process.pid)


async def test_how_a_node_has_ended_is_told_with_its_last_words(agent: Agent, tmp_path: Path) -> None:
    how = await agent.run(placed(tmp_path))
    assert how.startswith("exit code 1: error: ")


async def test_whoever_asks_later_waits_for_the_same_node(agent: Agent, tmp_path: Path) -> None:
    first, second = await asyncio.gather(agent.run(placed(tmp_path)), agent.run(placed(tmp_path)))
    assert first == second


async def test_a_token_is_in_no_command_line_and_in_no_file(agent: Agent, tmp_path: Path) -> None:
    running = asyncio.create_task(agent.run(placed(tmp_path)))
    words = (await child(agent)).cmdline()
    await running
    assert not any("a-secret" in word for word in words)
    kept = {path.name: path for path in files(tmp_path)}
    assert not any(b"a-secret" in path.read_bytes() for path in kept.values())
    assert stat.S_IMODE(kept["node.toml"].stat().st_mode) == 0o600


async def test_nothing_of_rays_goes_to_the_node(agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    monkeypatch.setenv("MICROKERNEL_TOKEN", "x" * 32)
    running = asyncio.create_task(agent.run(placed(tmp_path)))
    environment = (await child(agent)).environ()
    await asyncio.gather(running, agent.stop())
    assert environment["MICROKERNEL_JOIN_TOKEN"] == "a-secret"
    assert [name for name in environment if name.startswith(("RAY_", "MICROKERNEL_"))] == ["MICROKERNEL_JOIN_TOKEN"]


@pytest.mark.parametrize(
    ("config", "more", "words"),
    [
        ("", {}, ["--set", 'services.models.root="MODELS"']),
        ("services.models.root = '/m'", {}, []),
        ("services.models.root = '/m'", {"host": "10.0.0.1", "port": 7}, ["--cluster", "10.0.0.1:7"]),
        ("services.models.root = '/m'", {"host": "fd00::1"}, ["--cluster", "[fd00::1]:0"]),
    ],
)
async def test_a_node_listens_where_others_reach_it_and_shares_the_models_of_its_machine(
    agent: Agent, tmp_path: Path, config: str, more: dict[str, object], words: list[str]
) -> None:
    running = asyncio.create_task(agent.run(placed(tmp_path, config, **more)))
    found = (await child(agent)).cmdline()
    await asyncio.gather(running, agent.stop())
    assert found[found.index("--until-eof") + 1 :] == [
        word.replace("MODELS", str(tmp_path / "models")) for word in words
    ]


async def test_a_node_that_does_not_end_when_told_to_is_killed(agent: Agent, tmp_path: Path) -> None:
    deaf = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); sys.stdin.read()"
    agent._process = process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", deaf, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    await process.stdout.readline()
    await agent.stop()
    assert (await agent.run(placed(tmp_path))).startswith(signal.SIGKILL.name)


async def test_an_agent_that_is_forgotten_ends_and_its_node_with_it(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FORGOTTEN, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    node = psutil.Process(int(await process.stdout.readline()))
    assert await asyncio.wait_for(process.wait(), 60) == 0
    async with asyncio.timeout(60):
        while node.is_running() and node.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.05)


# Its node would wait for ever, were it not for the end of its standard input.
FORGOTTEN = """
import asyncio, sys
from drivers.ray import agent
from drivers.ray.agent import Agent

async def main():
    agent.LOOK = 0.1
    forgotten = Agent(1.0)
    forgotten._process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import sys; sys.stdin.read()", stdin=asyncio.subprocess.PIPE
    )
    print(forgotten._process.pid, flush=True)
    for _ in range(10):
        await asyncio.sleep(0.2)
        await forgotten.tend()
    await asyncio.Event().wait()

asyncio.run(main())
"""
