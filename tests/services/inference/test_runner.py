"""What is asked of a model's engine between its steps is done, or it is told why not."""

from __future__ import annotations

import asyncio

import pytest

from microkernel.errors import Unavailable
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
