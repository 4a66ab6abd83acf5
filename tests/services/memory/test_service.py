"""Memory through the kernel, on the real device."""

from __future__ import annotations

import asyncio

import pytest

from microkernel import Service, handles
from microkernel.errors import Overloaded
from microkernel.testing import TestKernel
from services.devices.service import Devices
from services.memory.service import Memory


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
        [account] = await system.call("memory.usage")
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
