"""Runs something again whenever it has ended, after pauses that grow while it does not last."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from microkernel.errors import from_exception
from microkernel.service import Service

__all__ = ["keep_running"]

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds until what has ended is started again
STEADY = 30.0  # seconds after which a pause begins anew


async def keep_running(
    service: Service, what: str, run: Callable[[], Awaitable[str]], is_over: Callable[[], bool]
) -> None:
    """Until `is_over`, or cancelled. `run` returns how it has ended; the log tells that, and what it raises."""
    pause, loop = FIRST_PAUSE, asyncio.get_running_loop()
    while not is_over():
        began = loop.time()
        try:
            how = await run()
        except Exception as error:  # noqa: BLE001 - whatever keeps one from starting, the others go on
            said = f"does not run: {from_exception(error).message}"
        else:
            said = f"has ended ({how})"
        if is_over():
            return
        service.log.warning("%s %s", what, said)
        pause = FIRST_PAUSE if loop.time() - began > STEADY else min(LONGEST_PAUSE, 2 * pause)
        await asyncio.sleep(pause)
