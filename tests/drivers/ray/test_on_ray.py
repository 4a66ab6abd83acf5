"""Nodes on a real Ray cluster: they come, work, die and end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest
from on_ray import all_there, boots, gone, installed, on_ray, until
from ray_cluster import ENVIRONMENT, RayCluster, ray_cluster

pytest.importorskip("ray")
pytestmark = [pytest.mark.peer, pytest.mark.timeout(600)]

__all__ = ["installed"]


@pytest.fixture
async def ray() -> AsyncIterator[RayCluster]:
    async with ray_cluster(2) as cluster:
        yield cluster


def others(ray: RayCluster) -> list[str]:
    return [name for name in ray.names if name != ray.head]


async def test_each_node_of_ray_has_one_of_ours_which_answers_and_maps(ray: RayCluster, tmp_path: Path) -> None:
    async with on_ray(ray, tmp_path) as node:
        await all_there(node, *ray.names)
        there = f"ray-{others(ray)[0]}"
        assert (await node.call(f"kernel.status@{there}")).node == there
        mapped = await node.call("scheduler.map", function="mapped:where", items=list(range(200)), tasks=200)
        assert [value[0] for value in mapped] == list(range(200))
        assert len({value[1] for value in mapped}) == 3, "processes that have worked"
        running = boots(tmp_path)
        assert set(running) == {f"ray-{name}" for name in ray.names}
    for process in running.values():
        await gone(process)


async def test_when_the_node_ends_ray_has_none_of_its_processes_any_more(ray: RayCluster, tmp_path: Path) -> None:
    async with on_ray(ray, tmp_path) as node:
        await all_there(node, *ray.names)
        agents = [process.parent() for process in boots(tmp_path).values()]
        bridges = bridges_of(os.getpid())
    assert (len(agents), len(bridges)) == (2, 1)
    for process in (*agents, *bridges):
        await gone(process)


async def test_nodes_that_ray_gets_and_loses_are_followed(ray: RayCluster, tmp_path: Path) -> None:
    async with on_ray(ray, tmp_path) as node:
        await all_there(node, *ray.names)
        old = others(ray)[0]
        new = await ray.add()
        await ray.remove(old)
        await all_there(node, ray.head, new)


async def test_a_node_of_ray_that_has_too_little_gets_none(ray: RayCluster, tmp_path: Path) -> None:
    special = await ray.add(resources={"special": 1})
    async with on_ray(ray, tmp_path, resources={"special": 1}) as node:
        await all_there(node, special)


async def test_what_ray_prepares_for_a_node_is_there_for_it(ray: RayCluster, tmp_path: Path) -> None:
    async with on_ray(ray, tmp_path, runtime_env={"env_vars": {"PREPARED": "yes"}}) as node:
        await all_there(node, *ray.names)
        assert {process.environ().get("PREPARED") for process in boots(tmp_path).values()} == {"yes"}


async def test_when_the_process_of_an_agent_is_killed_its_node_ends_and_another_one_takes_its_place(
    ray: RayCluster, tmp_path: Path
) -> None:
    async with on_ray(ray, tmp_path) as node:
        await all_there(node, *ray.names)
        name = f"ray-{others(ray)[0]}"
        process = boots(tmp_path)[name]
        life = (await until(node, lambda seen: True))[name].incarnation
        process.parent().kill()
        await gone(process)
        await until(node, lambda seen: seen[name].state == "alive" and seen[name].incarnation > life)
        await all_there(node, *ray.names)


async def test_when_a_node_is_killed_the_map_goes_on_and_another_one_takes_its_place(
    ray: RayCluster, tmp_path: Path
) -> None:
    async with on_ray(ray, tmp_path) as node:
        await all_there(node, *ray.names)
        notes = tmp_path / "notes"
        notes.mkdir()
        arguments = {"folder": str(notes), "seconds": 0.02}
        mapping = asyncio.create_task(
            node.call("scheduler.map", function="mapped:noted", items=list(range(400)), tasks=400, arguments=arguments)
        )
        name, process = next(iter(boots(tmp_path).items()))
        while not any(f".{process.pid}." in note.name for note in notes.iterdir()):
            await asyncio.sleep(0.01)
        process.kill()
        assert await mapping == list(range(400))
        await all_there(node, *ray.names)
        assert boots(tmp_path)[name].pid != process.pid


async def test_when_a_node_of_ray_is_killed_ours_is_gone_long_before_ray_sees_it(
    ray: RayCluster, tmp_path: Path
) -> None:
    async with on_ray(ray, tmp_path) as node:
        await all_there(node, *ray.names)
        victim = others(ray)[0]
        await ray.kill(victim)
        async with asyncio.timeout(20):
            await until(node, lambda seen: seen[f"ray-{victim}"].state in {"left", "dead"})
        mapped = await node.call("scheduler.map", function="mapped:square", items=list(range(100)), tasks=50)
        assert mapped == [item * item for item in range(100)]


async def test_a_node_that_hangs_is_taken_for_dead_by_us_and_comes_back_when_it_goes_on(
    ray: RayCluster, tmp_path: Path
) -> None:
    async with on_ray(ray, tmp_path) as node:
        await all_there(node, *ray.names)
        name, process = next(iter(boots(tmp_path).items()))
        process.send_signal(signal.SIGSTOP)
        try:
            await until(node, lambda seen: seen[name].state == "dead")
        finally:
            process.send_signal(signal.SIGCONT)
        await all_there(node, *ray.names)
        assert boots(tmp_path)[name].pid == process.pid


async def test_nodes_outlive_the_node_that_was_killed_and_are_its_again_when_it_is_back(
    ray: RayCluster, tmp_path: Path
) -> None:
    first = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", FIRST, ray.address, str(tmp_path), *ray.names),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **ENVIRONMENT},
    )
    assert await asyncio.wait_for(first.stdout.readline(), 120) == b"all there\n"
    before, bridges = boots(tmp_path / "far"), bridges_of(first.pid)
    first.kill()
    await first.wait()
    for bridge in bridges:
        await gone(bridge)
    async with on_ray(ray, tmp_path / "far", root=tmp_path / "root") as node:
        await all_there(node, *ray.names)
        assert {name: each.pid for name, each in boots(tmp_path / "far").items()} == {
            name: each.pid for name, each in before.items()
        }
        await until_followed(ray)
        agents = [process.parent() for process in before.values()]
    for process in (*agents, *before.values()):
        await gone(process)


async def test_a_bridge_that_dies_takes_no_node_along(ray: RayCluster, tmp_path: Path) -> None:
    async with on_ray(ray, tmp_path) as node:
        await all_there(node, *ray.names)
        before = boots(tmp_path)
        (bridge,) = bridges_of(os.getpid())
        bridge.kill()
        async with asyncio.timeout(60):
            while not (anew := bridges_of(os.getpid())) or bridge in anew:
                await asyncio.sleep(0.1)
        await all_there(node, *ray.names)
        new = await ray.add()  # that it is followed shows that the new one works
        await all_there(node, *ray.names, new)
        after = boots(tmp_path)
        assert {name: after[name].pid for name in before} == {name: each.pid for name, each in before.items()}


async def test_two_systems_on_one_ray_have_nodes_of_their_own(ray: RayCluster, tmp_path: Path) -> None:
    async with (
        on_ray(ray, tmp_path / "one", num_cpus=0.5) as one,
        on_ray(ray, tmp_path / "other", num_cpus=0.5) as other,
    ):
        await all_there(one, *ray.names)
        await all_there(other, *ray.names)


async def test_where_ray_has_no_room_nodes_wait_for_it(ray: RayCluster, tmp_path: Path) -> None:
    async with AsyncExitStack() as first, AsyncExitStack() as waiting:
        await all_there(await first.enter_async_context(on_ray(ray, tmp_path / "one")), *ray.names)
        other = await waiting.enter_async_context(on_ray(ray, tmp_path / "other"))
        await asyncio.sleep(8)  # its agents are asked for by then
        assert boots(tmp_path / "other") == {}
        await first.aclose()
        await all_there(other, *ray.names)


async def test_a_node_that_ends_while_ray_has_no_room_leaves_nothing_that_waits(
    ray: RayCluster, tmp_path: Path
) -> None:
    async with on_ray(ray, tmp_path / "one") as one:
        await all_there(one, *ray.names)
        async with on_ray(ray, tmp_path / "other"):
            await asyncio.sleep(8)
    async with on_ray(ray, tmp_path / "third") as third:  # had it left any, these would wait for them
        await all_there(third, *ray.names)
    assert boots(tmp_path / "other") == {}


async def until_followed(ray: RayCluster) -> None:
    """Return when a node of this process has asked Ray for its agents; nodes may have come back to it before."""
    async with asyncio.timeout(60):
        while sum(task.get_name().startswith("run ray-") for task in asyncio.all_tasks()) < len(ray.names):
            await asyncio.sleep(0.05)


FIRST = """
import asyncio, sys
from pathlib import Path
from on_ray import RayLauncher, Plugin, all_there, launched_nodes, on_ray
from ray_cluster import RayCluster

async def discover(names):
    return [Plugin("ray", "test", kind=RayLauncher)]

async def main():
    address, folder, *names = sys.argv[1:]
    launched_nodes.discover_launchers = discover
    ray = RayCluster(None, "", address, names[0])
    async with on_ray(ray, Path(folder) / "far", root=Path(folder) / "root") as node:
        await all_there(node, *names)
        print("all there", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def bridges_of(pid: int) -> list[psutil.Process]:
    """The processes that speak with Ray for a node."""
    alive = [each for each in psutil.Process(pid).children() if each.status() != psutil.STATUS_ZOMBIE]
    return [each for each in alive if "drivers.ray.bridge" in each.cmdline()]
