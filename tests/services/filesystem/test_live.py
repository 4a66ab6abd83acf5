"""The node as it is now, as files: in the kernel, as a user, and where a service is not there."""

from __future__ import annotations

import asyncio

import pytest
from plug import Plug

from microkernel.capability import Rights
from microkernel.errors import Invalid, NotFound
from microkernel.testing import TestKernel
from services.devices.service import Devices
from services.filesystem.service import Filesystem
from services.memory.service import Memory
from services.scheduler.service import Scheduler


@pytest.fixture
async def system():
    async with TestKernel(Devices, Memory, Scheduler, Filesystem) as system:
        yield system


async def text_of(port, path: str, **part) -> str:
    return b"".join([piece async for piece in port.stream("filesystem.read", path=path, **part)]).decode()


async def names_in(port, path: str) -> list[str]:
    return [each.path for each in await port.call("filesystem.list", path=path)]


def fields(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if line)


async def test_the_root_leads_to_what_is_mounted(system):
    assert {"/dev", "/proc"} < set(await names_in(system, "/"))
    root = await system.call("filesystem.stat", path="/")
    assert (root.path, root.kind) == ("/", "folder")
    assert (await system.call("filesystem.stat", path="/proc")).about
    assert (await system.call("filesystem.stat", path="/dev/cpu0")).kind == "live"


async def test_a_device_is_a_file_with_its_state(system):
    assert await names_in(system, "/dev") == ["/dev/cpu0"]
    device = await system.call("devices.show", name="cpu0")
    told = fields(await text_of(system, "/dev/cpu0"))
    assert (told["model"], told["state"], told["cores"]) == (device.model, "healthy", str(device.cores))


async def test_services_memory_and_the_node_are_files(system):
    head, *rows = [line.split("\t") for line in (await text_of(system, "/proc/services")).splitlines()]
    assert head == ["name", "state", "incarnation", "in_flight", "why"]
    assert {row[0] for row in rows} == {"kernel", "devices", "memory", "scheduler", "filesystem"}
    status = await system.call("kernel.status")
    assert fields(await text_of(system, "/proc/status"))["pid"] == str(status.pid)
    memory = [fields(block) for block in (await text_of(system, "/proc/meminfo")).split("\n\n") if block]
    accounts = await system.call("memory.usage")
    assert [(each["device"], each["tier"], int(each["limit_bytes"])) for each in memory] == [
        (account.device, account.tier, account.limit_bytes) for account in accounts
    ]


async def test_a_process_is_a_folder_while_it_runs(system):
    plug = Plug()
    busy = asyncio.create_task(system.kernel.executors.get("cpu0").run(plug))
    await plug.begun()
    mapping = asyncio.create_task(system.call("scheduler.map", function="mapped:square", items=[1, 2], tasks=2))
    while not (found := [path for path in await names_in(system, "/proc") if path.split("/")[2].isdecimal()]):
        await asyncio.sleep(0.005)
    folder = found[0]
    assert await names_in(system, folder) == [f"{folder}/status", f"{folder}/why"]
    told = fields(await text_of(system, f"{folder}/status"))
    assert (told["pid"], told["kind"], told["title"]) == (folder.split("/")[2], "map", "mapped:square")
    assert await text_of(system, f"{folder}/why") == await system.call("scheduler.why", pid=int(told["pid"])) + "\n"
    plug.pulled.set()
    await asyncio.gather(busy, mapping)
    with pytest.raises(NotFound, match=f"there is no {folder}/status"):
        await text_of(system, f"{folder}/status")


async def test_a_part_of_a_file_is_read_from_where_to_where_it_was_asked(system):
    whole = await text_of(system, "/proc/services")
    assert await text_of(system, "/proc/services", start=5) == whole[5:]
    assert await text_of(system, "/proc/services", start=5, stop=9) == whole[5:9]
    assert await text_of(system, "/proc/services", start=10**9) == ""
    for start, stop in ((-1, None), (5, 4)):
        with pytest.raises(Invalid, match="is no part of a file"):
            await text_of(system, "/proc/services", start=start, stop=stop)


@pytest.mark.parametrize("path", ["/etc", "/proc/nothing", "/proc/services/more", "/dev/cuda9", "/proc/99999/status"])
async def test_what_is_not_there_is_said_with_where_to_look(system, path):
    with pytest.raises(NotFound) as refused:
        await system.call("filesystem.stat", path=path)
    assert refused.value.field == "path"
    assert "mk fs ls" in refused.value.remedy
    with pytest.raises(NotFound):
        await text_of(system, path)


async def test_a_folder_is_listed_and_a_file_is_read_and_not_the_other_way_round(system):
    for path in ("/", "/proc", "/dev"):
        with pytest.raises(Invalid, match="is a folder"):
            await text_of(system, path)
    for path in ("/proc/services", "/dev/cpu0"):
        with pytest.raises(Invalid, match="is a file"):
            await system.call("filesystem.list", path=path)


async def test_users_have_no_files_of_processes_that_are_not_theirs(system):
    ann, bob = (
        system.kernel.port.narrow(caller=f"session {user}", rights=Rights(), user=user) for user in ("ann", "bob")
    )
    plug = Plug()
    busy = asyncio.create_task(system.kernel.executors.get("cpu0").run(plug))
    await plug.begun()
    mapping = asyncio.create_task(system.call("scheduler.map", function="mapped:square", items=[1], owner="ann"))
    while not (found := [path for path in await names_in(ann, "/proc") if path.split("/")[2].isdecimal()]):
        await asyncio.sleep(0.005)
    assert not [path for path in await names_in(bob, "/proc") if path.split("/")[2].isdecimal()]
    with pytest.raises(NotFound):
        await text_of(bob, f"{found[0]}/status")
    plug.pulled.set()
    await asyncio.gather(busy, mapping)


async def test_where_a_service_is_not_there_its_files_are_not_either():
    async with TestKernel(Filesystem) as system:
        assert await names_in(system, "/dev") == []
        assert await text_of(system, "/proc/meminfo") == ""
        assert "filesystem" in await text_of(system, "/proc/services")
