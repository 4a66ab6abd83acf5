"""The CPU as a device."""

from __future__ import annotations

import os
import threading

import psutil
import torch

from drivers.cpu.driver import CpuDriver, instruction_sets, memory_limit
from microkernel.cores import available_cores


def test_there_is_one_cpu_and_it_says_what_it_can_do():
    [device] = CpuDriver().find()
    facts = device.facts
    assert facts.name == "cpu0"
    assert facts.torch_device == "cpu"
    assert 1 <= facts.cores <= (os.cpu_count() or 1)
    assert {"float32", "bfloat16"} <= set(facts.dtypes)
    assert device.fault() is None
    assert 0 < device.free_memory() <= facts.memory_bytes


def test_cores_and_memory_are_those_that_this_process_may_use():
    assert available_cores() <= len(os.sched_getaffinity(0))
    assert memory_limit() <= psutil.virtual_memory().total


def test_instruction_sets_agree_with_what_torch_found():
    best = torch.backends.cpu.get_cpu_capability()
    if best.startswith("AVX"):
        assert any(name.startswith(best[:4].lower()) for name in instruction_sets())


async def test_torch_runs_on_the_compute_thread_with_all_cores():
    [device] = CpuDriver().find()
    executor = device.executor()
    await executor.start()
    threads, name = await executor.run(lambda: (torch.get_num_threads(), threading.current_thread().name))
    assert threads == device.facts.cores
    assert name == "cpu0.0"
    assert await executor.stop()
