"""The process that speaks with Ray, and what it says when Ray does not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_cluster import ray_cluster

from drivers.ray.bridge_process import BridgeProcess
from drivers.ray.launcher import RayLauncher
from drivers.ray.settings import RaySettings
from microkernel.errors import Unavailable
from microkernel.launcher import NodeStart

pytest.importorskip("ray")
pytestmark = [pytest.mark.peer, pytest.mark.timeout(600)]

TOKEN = "0123456789abcdef0123456789abcdef"


@asynccontextmanager
async def launcher(folder: Path, **settings: Any) -> AsyncIterator[RayLauncher]:
    made = RayLauncher()
    made.settings = RaySettings(**settings)
    await made.open("owner", folder)
    try:
        yield made
    finally:
        await made.close()
    assert bridges() == []


def bridges() -> list[psutil.Process]:
    """The processes of this one that speak with Ray."""
    return [each for each in psutil.Process(os.getpid()).children() if "drivers.ray.bridge" in each.cmdline()]


async def test_where_nobody_answers_that_is_told(tmp_path: Path) -> None:
    async with launcher(tmp_path, address="127.0.0.1:1") as found:
        with pytest.raises(Unavailable, match=r"^Ray at 127\.0\.0\.1:1: ConnectionRefusedError: "):
            await found.machines()


async def test_a_connection_that_could_not_be_made_is_not_tried_for_each_that_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []
    start = BridgeProcess._start

    async def counted(process: BridgeProcess) -> None:
        starts.append(process)
        await start(process)

    monkeypatch.setattr(BridgeProcess, "_start", counted)
    async with launcher(tmp_path, address="127.0.0.1:1") as found:
        told = await asyncio.gather(*(found.machines() for _ in range(5)), return_exceptions=True)
    assert {str(each) for each in told} == {str(told[0])}
    assert len(starts) == 1


async def test_where_no_ray_runs_here_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where Ray notes which cluster runs
    async with launcher(tmp_path, address="auto") as found:
        with pytest.raises(Unavailable, match="Could not find any running Ray instance"):
            await found.machines()


async def test_a_node_for_a_machine_that_is_gone_is_not_started(tmp_path: Path) -> None:
    async with ray_cluster() as ray, launcher(tmp_path, address=ray.address) as found:
        await found.machines()
        start = NodeStart(node="n", join="http://127.0.0.1:1", token="t")
        with pytest.raises(Unavailable, match="its node in Ray is gone"):
            await found.run("0" * 12, start)


async def test_a_bridge_that_is_killed_ends_all_that_waits_and_the_next_call_starts_another(tmp_path: Path) -> None:
    async with ray_cluster() as ray, launcher(tmp_path, address=ray.address, num_cpus=9.0) as found:
        assert await found.machines() == ()
        (bridge,) = bridges()
        bridge.suspend()  # it is asked, and has not answered
        asking = asyncio.create_task(found.machines())
        await asyncio.sleep(0.2)
        bridge.kill()
        with pytest.raises(Unavailable, match=r"has ended \(-9\); its last words are in "):
            await asking
        assert await found.machines() == ()


async def test_a_ray_that_wants_a_token_gets_the_one_that_is_set_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text(TOKEN)
    wrong.write_text(TOKEN[::-1])
    async with ray_cluster(environment={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}) as ray:
        async with launcher(tmp_path / "1", address=ray.address, token_file=str(right)) as found:
            assert [each.name for each in await found.machines()] == [ray.head]
        monkeypatch.setenv("OURS", TOKEN)
        async with launcher(tmp_path / "2", address=ray.address, token_env="OURS") as found:
            assert [each.name for each in await found.machines()] == [ray.head]
        for number, settings in enumerate(({}, {"token_file": str(wrong)}), 3):
            async with launcher(tmp_path / str(number), address=ray.address, **settings) as found:
                with pytest.raises(
                    Unavailable, match="AuthenticationError: .* token is missing or incorrect"
                ) as raised:
                    await found.machines()
                assert TOKEN not in str(raised.value)
