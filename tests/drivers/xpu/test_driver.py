"""Intel's GPUs."""

from __future__ import annotations

import pytest
import torch

from drivers.xpu.driver import XpuDriver

there = torch.xpu.is_available()


@pytest.mark.skipif(there, reason="there is an XPU")
def test_without_one_nothing_is_found():
    assert XpuDriver().find() == ()


@pytest.mark.gpu
@pytest.mark.skipif(not there, reason="torch sees no XPU")
async def test_each_computes_on_its_thread_and_tells_its_memory():
    devices = XpuDriver().find()
    assert [device.facts.name for device in devices] == [f"xpu{index}" for index in range(torch.xpu.device_count())]
    for device in devices:
        assert device.fault() is None
        assert 0 < device.free_memory() <= device.facts.memory_bytes
        executor = device.executor()
        await executor.start()
        where = device.facts.torch_device
        assert await executor.run(lambda where=where: torch.ones(8, device=where).sum().item()) == 8.0
        assert await executor.stop()
