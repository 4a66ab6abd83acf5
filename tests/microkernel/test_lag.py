"""A handler that blocks the loop is named, and so is a thread that hogs the interpreter."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time

import pytest
import uvloop

from microkernel import Service, every, handles, on, streams
from microkernel.config import Config
from microkernel.errors import Invalid
from microkernel.lag import Lag
from microkernel.plugins import Plugin
from microkernel.testing import TestKernel


def library_call():
    time.sleep(0.2)


class Blocking(Service):
    name = "blocking"

    @handles
    async def sleep(self) -> None:
        time.sleep(0.2)  # noqa: ASYNC251 - what is tested

    @handles(name="deep")
    async def below(self) -> None:
        await self._inner()

    async def _inner(self) -> None:
        library_call()

    @handles
    async def compute(self) -> int:
        end, total = time.perf_counter() + 0.2, 0
        while time.perf_counter() < end:
            total += sum(range(1_000_000))  # holds the interpreter all the while
        return total

    @handles
    async def other(self) -> None:
        await self.call("blocking.sleep")

    @streams
    async def items(self):
        yield 1
        time.sleep(0.2)  # noqa: ASYNC251 - what is tested
        yield 2

    @on("test.poke")
    async def poked(self, event) -> None:
        time.sleep(0.2)  # noqa: ASYNC251 - what is tested

    @handles
    async def spawned(self) -> None:
        self.spawn(asyncio.sleep(0), name="harmless")
        self.spawn(detached(), name="detached")

    @handles
    async def polite(self) -> None:
        await asyncio.sleep(0.2)


async def detached():
    time.sleep(0.2)  # noqa: ASYNC251 - what is tested


class Ticking(Service):
    name = "ticking"
    ticked = False

    @every(0.01)
    async def tick(self) -> None:
        if not type(self).ticked:
            type(self).ticked = True
            time.sleep(0.2)  # noqa: ASYNC251 - what is tested


class SlowStart(Service):
    name = "slow"

    async def start(self) -> None:
        time.sleep(0.2)  # noqa: ASYNC251 - what is tested


async def next_block(events, is_it):
    """The next event for which `is_it`; a busy machine has others in between."""
    async with asyncio.timeout(30):
        async for event in events:
            if is_it(event.body):
                return event.body
    raise AssertionError("no event came")


async def blocked_by(system, service, call):
    async with system.subscribe("kernel.lag") as events:
        await call()
        return await next_block(events, lambda blocked: blocked.service == service)


async def test_a_handler_that_blocks_the_loop_is_named_with_its_line_and_for_how_long():
    async with TestKernel(Blocking) as system:
        blocked = await blocked_by(system, "blocking", lambda: system.call("blocking.sleep"))
    assert (blocked.service, blocked.handler, blocked.thread) == ("blocking", "sleep", None)
    line = Blocking.sleep.__code__.co_firstlineno + 2
    assert blocked.where.endswith(f"test_lag.py:{line}")
    assert blocked.seconds > 0.15


async def test_the_method_of_the_service_is_named_though_it_stood_in_a_library():
    async with TestKernel(Blocking) as system:
        blocked = await blocked_by(system, "blocking", lambda: system.call("blocking.deep"))
    assert blocked.handler == "_inner", "the innermost method"
    own, _, library = blocked.where.partition(" → ")
    assert own.endswith(f"test_lag.py:{Blocking._inner.__code__.co_firstlineno + 1}")
    assert library.endswith(f"test_lag.py:{library_call.__code__.co_firstlineno + 1}")


@pytest.mark.parametrize("handler", ["compute", "other"])
async def test_what_computes_without_a_pause_and_what_is_called_in_between_are_named(handler):
    async with TestKernel(Blocking) as system:
        blocked = await blocked_by(system, "blocking", lambda: system.call(f"blocking.{handler}"))
    assert blocked.handler == {"compute": "compute", "other": "sleep"}[handler]


async def test_streams_events_timers_and_tasks_that_block_are_named():
    async with TestKernel(Blocking) as system:

        async def read():
            assert [item async for item in system.stream("blocking.items")] == [1, 2]

        async def poke():
            system.publish("test.poke")

        assert (await blocked_by(system, "blocking", read)).handler == "items"
        assert (await blocked_by(system, "blocking", poke)).handler == "poked"
        spawned = await blocked_by(system, "blocking", lambda: system.call("blocking.spawned"))
        assert spawned.handler == "detached", "by the name of its task"


async def test_a_timer_that_blocks_is_named():
    Ticking.ticked = False
    async with TestKernel() as system, system.subscribe("kernel.lag") as events:
        await system.kernel.add(Plugin("ticking", "test", kind=Ticking))
        assert (await next_block(events, lambda blocked: blocked.service == "ticking")).handler == "tick"


async def test_a_start_that_blocks_is_named():
    async with TestKernel() as system, system.subscribe("kernel.lag") as events:
        await system.kernel.add(Plugin("slow", "test", kind=SlowStart))
        assert (await next_block(events, lambda blocked: blocked.service == "slow")).handler == "start"


async def test_a_handler_that_waits_is_not_a_block():
    async with TestKernel(Blocking) as system, system.subscribe("kernel.lag") as events:
        await asyncio.gather(*(system.call("blocking.polite") for _ in range(10)))
        await system.call("blocking.sleep")
        first = await next_block(events, lambda blocked: blocked.service == "blocking")
        assert first.handler == "sleep", "nothing was told of the calls before it"


async def test_a_thread_that_hogs_the_interpreter_is_named():
    numbers = [random.random() for _ in range(1_000_000)]
    running = [True]  # an event would be asked in a function of its own, which the watch might find it in

    def hog():
        while running:
            sorted(numbers)  # in one piece: no other thread gets a turn

    thread = threading.Thread(target=hog, name="greedy")
    async with TestKernel(Blocking) as system, system.subscribe("kernel.lag") as events:
        thread.start()
        try:
            blocked = await next_block(events, lambda blocked: "greedy" in (blocked.thread or ""))
        finally:
            running.clear()
            await asyncio.to_thread(thread.join)
    assert (blocked.service, blocked.handler) == (None, None)
    first = hog.__code__.co_firstlineno
    assert blocked.where.endswith((f"test_lag.py:{first + 1}", f"test_lag.py:{first + 2}"))


async def test_a_short_block_is_told_and_troubles_nobody_with_a_warning(caplog, monkeypatch):
    monkeypatch.setattr("microkernel.lag.LOUD", 3600.0)
    with caplog.at_level(logging.INFO, logger="microkernel.kernel"):
        async with TestKernel(Blocking) as system:
            await blocked_by(system, "blocking", lambda: system.call("blocking.sleep"))
    levels = {record.levelname for record in caplog.records if "held the loop" in record.getMessage()}
    assert levels == {"INFO"}


async def test_a_block_is_logged_as_a_warning_and_a_flood_of_them_is_counted(caplog, monkeypatch):
    monkeypatch.setattr("microkernel.lag.LOUD", 0.0)
    with caplog.at_level(logging.WARNING, logger="microkernel.kernel"):
        async with TestKernel(Blocking) as system:
            for _ in range(3):
                await blocked_by(system, "blocking", lambda: system.call("blocking.sleep"))
            system.kernel.lag._told_at -= 1.0  # a second later
            await blocked_by(system, "blocking", lambda: system.call("blocking.deep"))
    lines = [record.getMessage() for record in caplog.records if "held the loop" in record.getMessage()]
    assert any("blocking.sleep held the loop for 0." in line for line in lines)
    assert any("blocks before it were not logged" in line for line in lines)


async def test_the_status_of_the_node_shows_how_late_its_loop_was():
    async with TestKernel(Blocking) as system:
        await blocked_by(system, "blocking", lambda: system.call("blocking.sleep"))
        status = await system.call("kernel.status")
        assert status.loop_lag_max_ms > 150
        assert 0 <= status.loop_lag_p50_ms <= status.loop_lag_p99_ms <= status.loop_lag_max_ms


@pytest.mark.parametrize(
    ("method", "named"), [("sleep", "sleep"), ("deep", "_inner"), ("compute", "compute"), ("other", "sleep")]
)
def test_on_uvloop_a_block_is_named_as_well(method, named):
    async def scenario():
        async with TestKernel(Blocking) as system:
            return await blocked_by(system, "blocking", lambda: system.call(f"blocking.{method}"))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        blocked = runner.run(scenario())
    assert blocked.handler == named
    assert blocked.seconds > 0.15


async def test_nothing_is_watched_with_a_threshold_of_zero_and_one_too_small_is_refused():
    before = threading.active_count()
    async with TestKernel(Blocking, config=Config(lag_threshold=0.0)) as system:
        assert threading.active_count() == before
        status = await system.call("kernel.status")
        assert status.loop_lag_max_ms == 0
    with pytest.raises(Invalid, match="lag_threshold"):
        Lag(0.001, dict, lambda _: None)


async def test_the_watching_thread_ends_with_the_node():
    async with TestKernel(Blocking):
        [thread] = [thread for thread in threading.enumerate() if thread.name == "lag"]
    assert not thread.is_alive()


async def test_a_watch_whose_loop_has_closed_ends_by_itself():
    def loop_that_forgets_it():
        async def scenario():
            lag = Lag(0.01, dict, lambda _: None)
            lag.start()
            return lag._thread

        return asyncio.run(scenario())

    thread = await asyncio.to_thread(loop_that_forgets_it)
    await asyncio.to_thread(thread.join, 30)
    assert not thread.is_alive()
