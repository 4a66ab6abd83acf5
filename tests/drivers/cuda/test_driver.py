"""NVIDIA's GPUs: what can be known without one, and with one that it computes on its own thread and stream."""

from __future__ import annotations

import pytest
import torch

from drivers.cuda.driver import CudaDriver, dtypes

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_nothing_is_found():
    assert CudaDriver().find() == ()


def test_what_a_gpu_multiplies_follows_its_generation():
    assert "bfloat16" not in dtypes((7, 5))
    assert "int8" in dtypes((7, 5))
    assert "bfloat16" in dtypes((8, 0))
    assert "float8_e4m3fn" not in dtypes((8, 6))
    assert "float8_e4m3fn" in dtypes((9, 0))


@pytest.mark.gpu
@needs_gpu
async def test_each_gpu_computes_on_a_thread_and_a_stream_of_its_own():
    devices = CudaDriver().find()
    assert [device.facts.name for device in devices] == [f"cuda{index}" for index in range(torch.cuda.device_count())]
    for device in devices:
        executor = device.executor()
        await executor.start()
        try:
            where = torch.device(device.facts.torch_device)

            def on_device(where=where):
                current = torch.cuda.current_stream(where)
                same = current == torch.cuda.default_stream(where)
                return torch.cuda.current_device(), same, torch.ones(8, device="cuda").sum().item()

            index, default, total = await executor.run(on_device)
            assert (index, default, total) == (where.index, False, 8.0)
        finally:
            assert await executor.stop()


@pytest.mark.gpu
@needs_gpu
async def test_memory_that_we_take_is_gone_at_once_and_back_when_it_is_freed():
    device = CudaDriver().find()[0]
    assert device.fault() is None
    before = device.free_memory()
    assert 0 < before <= device.facts.memory_bytes
    block = torch.empty(256 << 20, dtype=torch.uint8, device=device.facts.torch_device)
    assert device.free_memory() <= before - (200 << 20)
    del block
    assert device.free_memory() >= before - (100 << 20)


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_multiplies_in_the_dtypes_that_it_is_said_to():
    for device in CudaDriver().find():
        for name in set(device.facts.dtypes) & {"float32", "float16", "bfloat16"}:
            ones = torch.ones(16, 16, dtype=getattr(torch, name), device=device.facts.torch_device)
            assert (ones @ ones)[0, 0].item() == 16


@pytest.mark.gpu
@needs_gpu
def test_a_failed_assertion_on_the_gpu_loses_the_device(tmp_path):
    import subprocess
    import sys

    script = """
import time, torch
from drivers.cuda.driver import CudaDriver
device = CudaDriver().find()[0]
try:
    torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")].cpu()
except RuntimeError:
    pass
for _ in range(200):
    device.fault()
    if device.lost():
        print(device.lost())
        break
    time.sleep(0.05)
"""  # in a process of its own: nothing on that GPU works afterwards
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert "assert" in done.stdout, done.stderr
