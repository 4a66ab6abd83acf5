"""Three nodes of one machine, as a user has them: real processes, real links, real signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from booted_cluster import HERE, PATIENCE, BootedCluster, all_alive, booted_cluster, seen
from ray_cluster import ray_cluster
from tiny_model import write_tiny_model

from microkernel.errors import Unavailable

pytestmark = pytest.mark.timeout(300)

SERVICES = '''
import asyncio
from pathlib import Path

from microkernel import Message, Service, handles
from microkernel.service import Placement


class Steady(Service):
    """Any node will do."""

    name = "steady"
    replicas = 2

    @handles(idempotent=True)
    async def double(self, message: int) -> int:
        await asyncio.sleep(0.005)
        return 2 * message


class Note(Message):
    folder: str
    number: int


class Tally(Service):
    """Each node has its own. A call leaves a file when it begins, and one when it ends, which it does with `go`."""

    name = "tally"
    placement = Placement.NODE

    @handles
    async def note(self, message: Note) -> str:
        folder = Path(message.folder)
        (folder / f"{message.number}.begun").touch()
        while not (folder / "go").exists():
            await asyncio.sleep(0.01)
        (folder / f"{message.number}.ended").touch()
        return self.node
'''

SCRIPT = """
import sys
from pathlib import Path

import microkernel as mk

with mk.connect_sync(root=Path(sys.argv[1])) as system:
    items = {"start": 0, "stop": 1000, "step": 1}
    print(system.call("scheduler.map", function="mapped:square", items=items, tasks=200))
    print(system.call("scheduler.map", function="mapped:tenth", items=items, reduce="mapped:add"))
    for sampling in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 5}):
        ask = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 80}
        with system.stream("inference.chat", **ask, **sampling) as pieces:
            print("".join(piece.text for piece in pieces).encode())
"""

WORKERS = ("node0-1", "node0-2")
PAUSE = 0.1  # seconds of a client between two rounds: nodes that boot need the machine, too
THERE = all_alive("scheduler", "inference", "tally")
SAMPLING = {"greedy": {"temperature": 0.0}, "seeded": {"temperature": 1.0, "seed": 7}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("services") / "counting.py"
    file.write_text(SERVICES)
    return file


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, tiny: Path, services: Path) -> Iterator[BootedCluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with booted_cluster(folder, "--nodes", "2", "--model", str(tiny), "--service", str(services)) as running:
        yield running


@asynccontextmanager
async def three(cluster: BootedCluster) -> AsyncIterator[Any]:
    """A client of the first node, once all are there."""
    async with cluster.connect() as system:
        await seen(system, THERE)
        yield system


def story(name: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"{name}: a long story."}], "max_tokens": 150, "ignore_eos": True}


async def told(system: Any, to: str = "inference.chat", **ask: Any) -> str:
    return "".join([piece.text async for piece in system.stream(to, **ask)])


async def mapped(system: Any, folder: Path, seconds: float = 0.002) -> AsyncIterator[Any]:
    """1,000 items, a task each, which leave a file for each time that they are done."""
    async for piece in system.stream(
        "scheduler.imap",
        function="mapped:noted",
        items={"start": 0, "stop": 1000, "step": 1},
        tasks=1000,
        arguments={"folder": str(folder), "seconds": seconds},
    ):
        yield piece


def check_map(pieces: list[Any], folder: Path) -> None:
    """In order, each item once; each was done at least once."""
    assert [value for piece in pieces for value in piece.values] == list(range(1000))
    assert not any(dict(piece.failed) for piece in pieces)
    done = Counter(int(file.name.partition(".")[0]) for file in folder.iterdir())
    assert set(done) == set(range(1000))


def pids_in(folder: Path) -> set[int]:
    return {int(file.name.split(".")[1]) for file in folder.iterdir()}


async def map_while_a_node_is_killed(cluster: BootedCluster, folder: Path) -> None:
    """1,000 tasks come in order and once each."""
    async with three(cluster) as system:
        killed = cluster.worker("node0-1")
        pieces = []
        async for piece in mapped(system, folder):
            pieces.append(piece)
            if len(pieces) == 200:
                killed.kill()
        check_map(pieces, folder)
        assert killed.pid in pids_in(folder)
        assert len(pids_in(folder)) >= 3


async def chat_while_a_node_is_killed(cluster: BootedCluster) -> None:
    """Answers whose node is killed at token 20 go on with the same text."""
    stories = {
        f"{way} {number}": {**story(f"{way} {number}"), **SAMPLING[way]} for way in SAMPLING for number in range(4)
    }
    async with three(cluster) as system:
        whole = {name: await told(system, "inference.chat@node0", **ask) for name, ask in stories.items()}
        killed = asyncio.get_running_loop().create_future()
        read: dict[str, int] = {}

        async def follow(name: str, ask: dict[str, Any]) -> str:
            text = ""
            # A node runs ahead of its reader by so many tokens only: at token 20 it has more than half yet to make.
            async for piece in system.stream("inference.chat", credit=1, **ask):
                text += piece.text
                if len(text) >= 20:
                    read[name] = len(text)
                    await killed
            return text

        async with asyncio.TaskGroup() as group:
            following = {name: group.create_task(follow(name, ask)) for name, ask in stories.items()}
            while len(read) < len(stories):
                await asyncio.sleep(0.01)
            running = {node: await made(system, node) for node in WORKERS}
            victim = max(WORKERS, key=lambda node: len({name.split()[0] for name in running[node]}))
            assert {name.split()[0] for name in running[victim]} == set(SAMPLING), running
            assert all(tokens < 150 for tokens in running[victim].values()), running
            cluster.worker(victim).kill()
            killed.set_result(None)
        assert {name: task.result() for name, task in following.items()} == whole


async def made(system: Any, node: str) -> dict[str, int]:
    """The answers that a node makes, by name, with how many tokens each has."""
    processes = await system.call(f"scheduler.list@{node}")
    return {each.title.partition(":")[0]: each.tokens_out for each in processes if each.kind == "chat"}


async def test_a_thousand_tasks_come_in_order_and_once_each_when_a_node_is_killed(
    cluster: BootedCluster, tmp_path: Path
) -> None:
    await map_while_a_node_is_killed(cluster, tmp_path)


async def test_answers_whose_node_is_killed_at_token_20_go_on_with_the_same_text(cluster: BootedCluster) -> None:
    await chat_while_a_node_is_killed(cluster)


@pytest.mark.parametrize(
    "seconds", [pytest.param(0.0, id="until it is dead"), pytest.param(10.0, id="10 s", marks=pytest.mark.slow)]
)
async def test_a_node_that_was_frozen_comes_back_with_a_new_life_and_nothing_is_done_twice(
    cluster: BootedCluster, tmp_path: Path, seconds: float
) -> None:
    items, notes = tmp_path / "items", tmp_path / "notes"
    items.mkdir()
    notes.mkdir()
    async with three(cluster) as system:
        before = (await seen(system, THERE))["node0-2"].incarnation
        frozen = cluster.worker("node0-2")

        def note(number: int) -> asyncio.Task[Any]:
            ask = {"folder": str(notes), "number": number}
            return asyncio.create_task(system.call("tally.note@node0-2", ask, deadline=60.0))

        begun = note(1)
        while not (notes / "1.begun").exists():
            await asyncio.sleep(0.005)
        pieces = []
        try:
            async for piece in mapped(system, items):
                pieces.append(piece)
                if len(pieces) == 100:
                    frozen.send_signal(signal.SIGSTOP)
                    sent = note(2)
            for node in ("node0", "node0-1"):
                await seen(system, lambda nodes: nodes["node0-2"].state == "dead", f"cluster.list@{node}")
            for call in (begun, sent):
                with pytest.raises(Unavailable, match="is dead") as caught:
                    await call
                assert caught.value.may_have_run is True
            check_map(pieces, items)
            await asyncio.sleep(seconds)
        finally:
            frozen.send_signal(signal.SIGCONT)
        after = await seen(system, THERE)
        assert after["node0-2"].incarnation > before
        assert frozen.pid == cluster.worker("node0-2").pid, "the same process came back"
        (notes / "go").touch()
        assert await note(3) == "node0-2"
        ended = {file.name for file in notes.glob("*.ended")}
        assert ended == {"3.ended"}, "what the old life had to do ended with it"


def run_script(file: Path, root: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(file), str(root)],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", ""))),
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_a_script_prints_the_same_with_one_node_and_with_three(
    cluster: BootedCluster, tiny: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    async with three(cluster):
        over_three = await asyncio.to_thread(run_script, script, cluster.root)
    (tmp_path / "alone").mkdir()
    with booted_cluster(tmp_path / "alone", "--model", str(tiny)) as alone:
        assert await asyncio.to_thread(run_script, script, alone.root) == over_three
    assert json.loads(over_three.splitlines()[0]) == [item * item for item in range(1000)]


@pytest.mark.peer
async def test_a_script_prints_the_same_on_a_ray_cluster(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for name in ("alone", "on_ray"):
        (tmp_path / name).mkdir()
    with booted_cluster(tmp_path / "alone", "--model", str(tiny)) as alone:
        expected = await asyncio.to_thread(run_script, script, alone.root)
    async with ray_cluster(2) as ray:
        settings = {"address": ray.address, "root": str(tmp_path / "far")}
        words = [f'services.cluster.launchers.ray.{key}="{value}"' for key, value in settings.items()]
        given = [each for word in words for each in ("--set", word)]
        with booted_cluster(tmp_path / "on_ray", "--model", str(tiny), *given) as first:
            async with first.connect() as system:
                await seen(system, all_alive("scheduler", "inference"), patience=2 * PATIENCE)
                for node in (f"ray-{name}" for name in ray.names):
                    await system.call(f"inference.list@{node}")  # answered with the models that it has
            assert await asyncio.to_thread(run_script, script, first.root) == expected


async def test_while_nodes_restart_in_turn_no_idempotent_call_fails_and_no_chat_breaks(cluster: BootedCluster) -> None:
    over = asyncio.Event()
    rounds = Counter[int]()

    def short(client: int) -> dict[str, Any]:
        return {**story(f"client {client}"), "max_tokens": 30, "temperature": 0.0}

    async def works(system: Any, client: int, right: str) -> None:
        while not over.is_set():
            assert await system.call("steady.double", client, deadline=30.0) == 2 * client
            assert await told(system, **short(client)) == right
            rounds[client] += 1
            await asyncio.sleep(PAUSE)

    async with three(cluster) as system:
        right = [await told(system, "inference.chat@node0", **short(client)) for client in range(8)]
        async with asyncio.TaskGroup() as group:
            for client in range(8):
                group.create_task(works(system, client, right[client]))
            for node in WORKERS:
                before = (await seen(system, THERE))[node].incarnation
                cluster.worker(node).terminate()
                await seen(system, lambda nodes, n=node, b=before: n in nodes and nodes[n].incarnation > b)
                await seen(system, THERE)
            over.set()
        assert len(rounds) == 8
        assert min(rounds.values()) > 10


@pytest.mark.slow
async def test_over_encrypted_links_it_is_the_same(tiny: Path, services: Path, tmp_path: Path) -> None:
    beyond = ["--set", 'services.cluster.host="0.0.0.0"', "--set", 'services.cluster.advertise="127.0.0.1"']
    given = ["--nodes", "2", "--model", str(tiny), "--service", str(services), *beyond]
    (tmp_path / "items").mkdir()
    with booted_cluster(tmp_path, *given) as encrypted:
        await map_while_a_node_is_killed(encrypted, tmp_path / "items")
        await chat_while_a_node_is_killed(encrypted)
        async with three(encrypted) as system:
            nodes = await seen(system, THERE)
            assert {each.address.partition(":")[0] for each in nodes.values()} == {"wss"}
