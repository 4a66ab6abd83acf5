"""What is asked of a model's engine between its steps is done, or it is told why not."""

from __future__ import annotations

import asyncio
import threading

import pytest

from microkernel.errors import Unavailable
from microkernel.executor import Executor
from services.inference.runner import Runner


async def test_a_job_that_a_leaving_model_has_not_done_is_told_so_and_so_are_later_ones():
    runner = Runner(engine=None, executor=None, now=lambda: 0.0)
    job = asyncio.create_task(runner.ask(lambda _: 1))
    await asyncio.sleep(0)
    runner._end(Unavailable("it leaves"))
    with pytest.raises(Unavailable, match="it leaves"):
        await job
    with pytest.raises(Unavailable, match="being unloaded"):
        await runner.ask(lambda _: 1)


class Closing:
    """An engine of which is known only whether it was closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()


async def test_an_engine_is_closed_once_its_device_gets_to_it_though_nobody_waits_for_that_any_more():
    executor, goes_on, engine = Executor("cpu0"), threading.Event(), Closing()
    await executor.start()
    busy = asyncio.create_task(executor.run(goes_on.wait, 30))  # another model's weights are read
    closing = asyncio.create_task(Runner(engine, executor, now=lambda: 0.0).close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    goes_on.set()
    await busy
    await executor.run(lambda: None)
    assert engine.closed.is_set()
    await executor.stop()


async def test_an_engine_whose_device_is_gone_is_closed_as_far_as_anybody_can():
    executor, engine = Executor("cpu0"), Closing()
    await executor.start()
    await executor.stop()
    await Runner(engine, executor, now=lambda: 0.0).close()
    assert not engine.closed.is_set(), "the memory has gone with the device"
