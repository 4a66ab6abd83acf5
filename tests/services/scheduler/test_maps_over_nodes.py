"""A map over several nodes gives what it gives on one, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from linked_nodes import linked

from microkernel.errors import Aborted, Denied, Invalid, NotFound
from services.devices.service import Devices
from services.scheduler.map_jobs import MapJobs
from services.scheduler.mapping.over_nodes import pack_outcomes
from services.scheduler.mapping.work import Outcome
from services.scheduler.service import Scheduler

SERVICES = (Devices, Scheduler)


@asynccontextmanager
async def three():
    async with linked(SERVICES, SERVICES, SERVICES) as nodes:
        for node in nodes:
            await node.call("devices.list")
        for other in nodes[1:]:
            nodes[0].knows(other, "scheduler", weight=2.0)
        yield nodes


@pytest.fixture
def done(monkeypatch):
    """Which nodes have done how many tasks for another one."""
    count: dict[str, int] = {}
    before = MapJobs.do_for_another

    async def do_for_another(self, ask):
        answer = await before(self, ask)
        count[self._service.node] = count.get(self._service.node, 0) + 1
        return answer

    monkeypatch.setattr(MapJobs, "do_for_another", do_for_another)
    return count


async def test_the_values_are_those_of_one_node_and_all_nodes_had_a_share(done):
    async with three() as (first, *_):
        values = await first.call("scheduler.map", function="mapped:slowly", items=list(range(60)), tasks=60)
        assert values == list(range(60))
        assert set(done) == {"n2", "n3"}


@pytest.mark.parametrize("tasks", [None, 7, 1000])
async def test_each_item_comes_once_and_in_order_however_they_are_cut(tasks):
    async with three() as (first, *_):
        values = await first.call(
            "scheduler.map", function="mapped:square", items={"start": 0, "stop": 1000, "step": 1}, tasks=tasks
        )
        assert values == [item * item for item in range(1000)]


async def test_a_reduction_has_the_same_bits_as_on_one_node():
    async with three() as (first, second, third):
        ask = {"function": "mapped:tenth", "items": list(range(500)), "reduce": "mapped:add", "tasks": 40}
        over_three = await first.call("scheduler.map", **ask)
        await first.forgets(second)
        await first.forgets(third)
        assert over_three == await first.call("scheduler.map", **ask)


async def test_a_node_that_dies_on_the_way_costs_no_item_and_doubles_none():
    async with three() as (first, second, third):
        pieces = []
        stream = first.kernel.stream(
            "scheduler.imap", function="mapped:slowly", items={"start": 0, "stop": 1000, "step": 1}, tasks=1000
        )
        async for piece in stream:
            pieces.append(piece)
            if len(pieces) == 100:
                await first.forgets(second)
            if len(pieces) == 300:
                third.kernel.kernel.instance("scheduler").close("ends in a test")
                await first.forgets(third)
        assert [value for piece in pieces for value in piece.values] == list(range(1000))
        assert [piece.start for piece in pieces] == sorted(piece.start for piece in pieces)


async def test_links_that_break_again_and_again_are_no_fault_of_the_tasks(monkeypatch):
    async with three() as (first, second, third):
        for node in (second, third):

            async def break_off(ask):
                first.break_links()
                await asyncio.sleep(60)

            jobs = node.kernel.kernel.instance("scheduler").service._maps
            monkeypatch.setattr(jobs, "do_for_another", break_off)
        values = await first.call("scheduler.map", function="mapped:slowly", items=list(range(400)), tasks=400)
        assert values == list(range(400))


async def test_items_that_fail_on_another_node_are_named():
    async with three() as (first, *_):
        with pytest.raises(Aborted, match="20 of 40 items failed: item 1: .*1 is odd"):
            await first.call("scheduler.map", function="mapped:odd_fails", items=list(range(40)), tasks=40)


async def test_a_node_without_the_function_gets_no_more_of_its_tasks(monkeypatch, caplog):
    async with three() as (first, second, _):
        jobs = second.kernel.kernel.instance("scheduler").service._maps

        async def cannot(names):
            raise NotFound("module 'mapped' cannot be imported", field="function")

        monkeypatch.setattr(jobs, "_import", cannot)
        caplog.set_level("INFO")
        values = await first.call("scheduler.map", function="mapped:slowly", items=list(range(60)), tasks=60)
        assert values == list(range(60))
        assert caplog.text.count("node 'n2' gets no more tasks of this map: module 'mapped' cannot be imported") == 1


async def test_only_nodes_hand_over_tasks():
    async with linked(SERVICES) as (node,):
        with pytest.raises(Denied, match="only another node"):
            await node.call("scheduler.run_tasks", tasks=b"", owner="ana", process_class="batch", nice=0, age=0.0)


async def test_bytes_and_nested_values_come_back_as_they_were():
    async with three() as (first, *_):
        values = await first.call("scheduler.map", function="mapped:described", items=[b"a", b"bc"] * 30, tasks=60)
        assert values == [{"raw": b"a", "list": [1, None, 0.5]}, {"raw": b"bc", "list": [2, None, 0.5]}] * 30


async def test_a_frozen_node_holds_nothing_up(monkeypatch):
    async with three() as (first, second, _):
        ice = asyncio.Event()
        jobs = second.kernel.kernel.instance("scheduler").service._maps
        monkeypatch.setattr(jobs, "do_for_another", lambda ask: ice.wait())
        values = await asyncio.wait_for(
            first.call("scheduler.map", function="mapped:slowly", items=list(range(60)), tasks=60), 30
        )
        assert values == list(range(60))
        ice.set()


def test_a_value_without_a_plain_form_is_refused_with_what_it_is():
    with pytest.raises(Invalid, match="cannot be sent to another process: Encoding objects of type object"):
        pack_outcomes([Outcome(values=[object()])])
