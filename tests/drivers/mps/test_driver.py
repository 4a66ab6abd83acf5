"""The GPU of a Mac."""

from __future__ import annotations

import pytest
import torch

from drivers.mps.driver import MpsDriver

there = torch.backends.mps.is_available()


@pytest.mark.skipif(there, reason="this is a Mac")
def test_on_another_machine_nothing_is_found():
    assert MpsDriver().find() == ()


@pytest.mark.gpu
@pytest.mark.skipif(not there, reason="torch sees no MPS device")
async def test_the_gpu_computes_on_its_thread_and_tells_its_memory():
    [device] = MpsDriver().find()
    assert device.facts.name == "mps0"
    assert device.fault() is None
    assert 0 < device.free_memory() <= device.facts.memory_bytes
    executor = device.executor()
    await executor.start()
    assert await executor.run(lambda: torch.ones(8, device="mps").sum().item()) == 8.0
    assert await executor.stop()
