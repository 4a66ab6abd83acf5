"""Whoever has the device after a model finds all the threads that it gives; the model finds its own number again."""

from __future__ import annotations

import asyncio

import pytest
import torch
from tiny_models import VOCABULARY

from microkernel.executor import Executor
from services.inference.engine.engine import Engine, Request
from services.inference.engine.sampler import ResolvedSampling
from services.inference.engine.torch_threads import TorchThreads
from services.inference.engine.trials import measure
from services.inference.runner import Runner


@pytest.fixture
async def executor():
    executor = Executor("cpu0", initialize=lambda: torch.set_num_threads(2))
    await executor.start()
    yield executor
    await executor.stop()


async def answered(engine: Engine, executor: Executor, seen: list[int]) -> None:
    """Have a prompt answered, and look at torch's threads after each step."""
    runner = Runner(engine, executor, now=lambda: 0.0)
    running = asyncio.create_task(runner.run())
    await runner.ask(lambda engine: engine.add(request()))
    while await runner.ask(lambda engine: engine.running + engine.waiting):
        seen.append(await executor.run(torch.get_num_threads))
    running.cancel()
    await asyncio.wait([running])


def request() -> Request:
    prompt = [place % VOCABULARY for place in range(8)]
    return Request(id=1, prompt=prompt, max_tokens=5, params=ResolvedSampling(temperature=0.0))


async def test_after_each_step_of_the_kernels_torch_has_all_threads_again(native_decoder, executor):
    seen: list[int] = []
    await answered(Engine(native_decoder), executor, seen)
    assert seen
    assert set(seen) == {2}


async def test_after_each_trial_too(native_decoder, executor):
    seen: list[int] = []

    def trials():
        for _ in measure(Engine(native_decoder), most_slots=2, most_tokens=32):
            seen.append(torch.get_num_threads())
            yield

    await executor.run(trials)
    assert set(seen) == {2}


def test_a_model_finds_the_number_that_it_left():
    found = torch.get_num_threads()
    threads = TorchThreads()
    with threads:
        assert torch.get_num_threads() == found
        torch.set_num_threads(found + 1)
    assert torch.get_num_threads() == found
    with threads:
        assert torch.get_num_threads() == found + 1
    assert torch.get_num_threads() == found
    torch.set_num_threads(found + 2)  # the device gives another number now
    with threads:
        assert torch.get_num_threads() == found + 2
    torch.set_num_threads(found)
