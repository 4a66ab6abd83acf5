"""Who watches whom: up and down in turn, beginning with how things are."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.capability import Rights
from microkernel.errors import Denied, NotFound, Overloaded, PreconditionFailed
from microkernel.monitors import LONGEST, MOST, Down, Monitors, Up
from microkernel.service import Service, handles
from microkernel.testing import TestKernel


class Watched(Service):
    name = "watched"

    @handles
    async def crash(self) -> None:
        async def fail():
            raise RuntimeError("it fell over")

        self.spawn(fail(), name="fail")


async def test_a_monitor_hears_how_it_is_then_down_with_the_reason_then_up_again():
    async with TestKernel(Watched) as system, system.kernel.port.monitor("watched") as changes:
        assert await anext(changes) == Up("watched", 1)
        await system.call("watched.crash")
        down = await anext(changes)
        assert (type(down), down.incarnation) == (Down, 1)
        assert "it fell over" in down.reason
        assert await anext(changes) == Up("watched", 2)


async def test_the_removal_of_a_service_is_a_down():
    async with TestKernel(Watched) as system, system.kernel.port.monitor("watched") as changes:
        await anext(changes)
        await system.call("kernel.remove", name="watched")
        assert "was removed" in (await anext(changes)).reason


async def test_a_monitor_of_what_is_not_there_is_refused_by_name():
    async with TestKernel() as system:
        with pytest.raises(NotFound, match="ghost"):
            system.kernel.port.monitor("ghost")


async def test_who_may_not_hear_of_a_service_may_not_monitor_it():
    async with TestKernel(Watched) as system:
        narrow = system.kernel.port.narrow(caller="guest", rights=Rights(allow=("kv.*",)))
        with pytest.raises(Denied):
            narrow.monitor("watched")


async def test_a_second_reader_at_once_is_refused_and_a_close_ends_the_first():
    monitors = Monitors()
    monitor = monitors.add("a", Up("a", 1))
    await anext(monitor)
    waiting = asyncio.create_task(anext(monitor, None))
    await asyncio.sleep(0)
    with pytest.raises(PreconditionFailed):
        await anext(monitor)
    await monitor.aclose()
    assert await waiting is None


@given(st.lists(st.one_of(st.just("up"), st.just("down")), max_size=400), st.integers(0, 50))
def test_whatever_happens_a_reader_sees_changes_in_turn_and_last_the_present(events, reads):
    monitors = Monitors()
    monitor = monitors.add("a", Down("a", 0, "starting"))
    incarnation, present = 0, "down"
    for event in events:
        if event == "up" and present == "down":
            incarnation += 1
        present = event
        monitors.tell(Up("a", incarnation) if event == "up" else Down("a", incarnation, "crashed"))
        assert len(monitor._changes) <= LONGEST
        if reads:
            reads -= 1
            if monitor._changes:
                monitor._changes.popleft()
    seen = [type(change).__name__.lower() for change in monitor._changes]
    assert all(first != second for first, second in itertools.pairwise(seen))
    assert not seen or seen[-1] == present


def test_the_number_of_monitors_of_a_service_is_limited():
    monitors = Monitors()
    for _ in range(MOST):
        monitors.add("a", Up("a", 1))
    with pytest.raises(Overloaded):
        monitors.add("a", Up("a", 1))
