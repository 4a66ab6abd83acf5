"""Memory through the kernel, on the real device."""

from __future__ import annotations

import asyncio

import pytest

from microkernel import Service, handles
from microkernel.capability import Rights
from microkernel.errors import Denied, Overloaded
from microkernel.message import Message, convert
from microkernel.testing import TestKernel
from services.devices.messages import Device, DeviceState
from services.devices.service import Devices
from services.memory.messages import Holding, Pressure, Quotas, ReportUse, Rung
from services.memory.service import Memory


class Use(Message):
    bytes: int
    spare: int = 0


class Keeper(Service):
    name = "keeper"
    uses = ("memory",)

    @handles
    async def take(self) -> None:
        await self.call("memory.reserve", purpose="files", bytes=1000, tier="disk")


class Hoarder(Service):
    name = "hoarder"
    uses = ("memory",)

    @handles
    async def take(self) -> int:
        reservation = await self.call("memory.reserve", purpose="a hoard", bytes=1000)
        return reservation.id


async def test_the_account_of_the_device_is_a_share_of_its_memory():
    async with TestKernel(Devices, Memory, settings={"memory": {"share": 0.5}}) as system:
        [device] = await system.call("devices.list")
        account, _ = await system.call("memory.usage")
        assert account.limit_bytes == device.memory_bytes // 2
        with pytest.raises(Overloaded):
            await system.call("memory.reserve", purpose="all of it", bytes=device.memory_bytes)


async def test_what_a_service_had_is_free_once_it_has_stopped():
    async with TestKernel(Devices, Memory, Hoarder) as system:
        await system.call("hoarder.take")
        assert (await system.call("memory.usage"))[0].reserved_bytes == 1000
        await system.restart("hoarder")
        async with asyncio.timeout(10):
            while (await system.call("memory.usage"))[0].reserved_bytes:
                await asyncio.sleep(0.01)


class OneDevice(Service):
    """A device of 1,000 bytes of which as many are free as a test says."""

    name = "devices"
    free = 1000

    @handles(name="list")
    async def list_devices(self) -> list[Device]:
        return [await self.show()]

    @handles
    async def show(self) -> Device:
        return Device(
            name="cpu0",
            kind="cpu",
            driver="test",
            model="",
            state=DeviceState.HEALTHY,
            cores=1,
            threads=1,
            memory_bytes=1000,
            memory_free_bytes=self.free,
        )


class Tenant(Service):
    name = "tenant"
    uses = ("memory",)

    @handles
    async def use(self, message: Use) -> Rung:
        holding = Holding(name="m", device="cpu0", resident_bytes=message.bytes, spare_bytes=message.spare)
        return (await self.call("memory.report", ReportUse(device="cpu0", holdings=(holding,)))).rung


async def test_pressure_is_told_when_the_rung_changes_and_to_who_reports(monkeypatch):
    async with TestKernel(OneDevice, Memory, Tenant, settings={"memory": {"share": 1.0}}) as system:
        events = system.subscribe("memory.pressure")
        rungs = []
        for used, free in [(100, 900), (650, 350), (640, 360), (850, 150), (100, 10), (100, 900)]:
            monkeypatch.setattr(OneDevice, "free", free)
            rungs.append(await system.call("tenant.use", bytes=used))
        assert rungs == [Rung.CALM, Rung.DROP, Rung.DROP, Rung.CLOSE, Rung.CLOSE, Rung.CALM]
        told = [convert((await anext(events)).body, Pressure) for _ in range(3)]
        assert [(each.rung, each.used, each.limit) for each in told] == [
            (Rung.DROP, 650, 1000),
            (Rung.CLOSE, 850, 1000),
            (Rung.CALM, 100, 1000),
        ]


async def test_what_a_pool_has_to_spare_could_be_used_as_well_as_what_is_free(monkeypatch):
    monkeypatch.setattr(OneDevice, "free", 50)
    async with TestKernel(OneDevice, Memory, Tenant, settings={"memory": {"share": 1.0}}) as system:
        uses = [(200, 650), (550, 300), (750, 100), (800, 50), (400, 450)]
        rungs = [await system.call("tenant.use", bytes=used, spare=spare) for used, spare in uses]
        assert rungs == [Rung.CALM, Rung.DROP, Rung.CLOSE, Rung.CLOSE, Rung.CALM]


async def test_a_device_that_others_fill_is_watched_without_a_report(monkeypatch):
    async with TestKernel(OneDevice, Memory, Tenant, settings={"memory": {"share": 1.0}}) as system:
        events = system.subscribe("memory.pressure")
        await system.call("tenant.use", bytes=100)
        monkeypatch.setattr(OneDevice, "free", 20)
        async with asyncio.timeout(10):
            assert convert((await anext(events)).body, Pressure).rung is Rung.CLOSE


async def test_a_quota_set_live_is_told_and_outlives_a_restart():
    settings = {"memory": {"quotas": {"bob": 0.5}, "default_quota": 300, "share": 1.0}}
    async with TestKernel(OneDevice, Memory, settings=settings) as system:
        events = system.subscribe("memory.quotas")
        [set_now] = await system.call("memory.set_quota", owner="ann", quota=200)
        assert (set_now.bytes, set_now.set) == (200, "live")
        told = {each.owner: each.bytes for each in convert((await anext(events)).body, Quotas).quotas}
        assert told == {"ann": 200, "bob": 500, "*": 300}
        await system.restart("memory")
        quotas = (await system.call("memory.quotas")).quotas
        assert {each.owner: each.bytes for each in quotas} == told
        await system.call("memory.set_quota", owner="ann", quota=None)
        assert {each.owner for each in (await system.call("memory.quotas")).quotas} == {"bob", "*"}


async def test_nobody_raises_its_own_quota():
    async with TestKernel(OneDevice, Memory) as system:
        ann = system.kernel.port.narrow(caller="session s1", rights=Rights(allow=("memory.*",)), user="ann")
        for owner in ("ann", "*"):
            with pytest.raises(Denied, match="'ann' may not change what holds for 'ann'"):
                await ann.call("memory.set_quota", owner=owner, quota=0.9)
        await ann.call("memory.set_quota", owner="bob", quota=0.1)
        root = system.kernel.port.narrow(caller="session s2", rights=Rights(), user="root")
        await root.call("memory.set_quota", owner="root", quota=0.9)


async def test_the_disk_has_an_account_of_its_own():
    async with TestKernel(OneDevice, Memory, Keeper) as system:
        await system.call("keeper.take")
        device, disk = await system.call("memory.usage")
        assert (device.reserved_bytes, disk.tier, disk.reserved_bytes) == (0, "disk", 1000)
