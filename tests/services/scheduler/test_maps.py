"""Maps through the kernel, on real threads and in real processes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from contextlib import asynccontextmanager

import psutil
import pytest

from microkernel.capability import Rights
from microkernel.errors import (
    Aborted,
    AlreadyExists,
    CallCancelled,
    Denied,
    Invalid,
    MicrokernelError,
    NotFound,
    PreconditionFailed,
)
from microkernel.isolation import packing
from microkernel.testing import TestKernel
from services.devices.service import Devices
from services.scheduler.mapping.crews import Threads
from services.scheduler.mapping.job import MOST_TOGETHER
from services.scheduler.mapping.work import Outcome
from services.scheduler.service import Scheduler


@asynccontextmanager
async def node(**settings):
    async with TestKernel(Devices, Scheduler, settings={"scheduler": settings}) as system:
        await system.call("devices.list")
        yield system


async def pieces_of(system, **fields):
    return [piece async for piece in system.stream("scheduler.imap", **fields)]


@pytest.mark.parametrize("workers", ["threads", "processes"])
@pytest.mark.parametrize("tasks", [None, 1, 7, 100])
async def test_values_come_in_the_order_of_the_items(workers, tasks):
    async with node() as system:
        values = await system.call(
            "scheduler.map", function="mapped:square", items=list(range(100)), tasks=tasks, workers=workers
        )
        assert values == [item * item for item in range(100)]


async def test_a_thousand_tasks_give_each_result_once_and_in_order():
    async with node() as system:
        pieces = await pieces_of(
            system, function="mapped:square", items={"start": 0, "stop": 1000, "step": 1}, tasks=1000
        )
        assert [(piece.start, piece.stop) for piece in pieces] == [(item, item + 1) for item in range(1000)]
        assert [piece.values for piece in pieces] == [[item * item] for item in range(1000)]


async def test_results_are_taken_as_tasks_end_where_order_does_not_matter(tmp_path):
    async with node() as system:
        stream = system.stream(
            "scheduler.imap",
            function="mapped:until",
            items=[0, 1],
            tasks=2,
            ordered=False,
            arguments={"path": str(tmp_path / "go")},
        )
        (tmp_path / "go").touch()
        assert sorted([piece.start async for piece in stream]) == [0, 1]


async def test_ten_million_numbers_are_summed_in_ten_tasks_that_get_them_whole():
    async with node() as system:
        total = await system.call(
            "scheduler.map",
            function="mapped:total",
            items={"start": 0, "stop": 10_000_000, "step": 1},
            tasks=10,
            whole=True,
            reduce="sum",
        )
        assert total == sum(range(10_000_000))


@pytest.mark.parametrize("workers", ["threads", "processes"])
async def test_a_reduction_has_the_same_bits_whoever_does_it(workers):
    expected = 0.0
    for task in range(7):
        part = None
        for item in range(task * 100, task * 100 + 100):
            part = item * 0.1 if part is None else part + item * 0.1
        expected = part if task == 0 else expected + part
    async with node() as system:
        for reduce in ("sum", "mapped:add"):
            value = await system.call(
                "scheduler.map",
                function="mapped:tenth",
                items=list(range(700)),
                tasks=7,
                reduce=reduce,
                workers=workers,
            )
            assert value == expected


async def test_arguments_go_to_every_call():
    async with node() as system:
        values = await system.call("scheduler.map", function="mapped:power", items=[1, 2, 3], arguments={"exponent": 3})
        assert values == [1, 8, 27]


async def test_items_that_fail_are_named_and_the_others_are_done():
    async with node() as system:
        with pytest.raises(Aborted, match="5 of 10 items failed: item 1: .*ValueError: 1 is odd") as caught:
            await system.call("scheduler.map", function="mapped:odd_fails", items=list(range(10)))
        assert "and 2 more" in caught.value.message
        pieces = await pieces_of(system, function="mapped:odd_fails", items=list(range(10)), tasks=2)
        assert [value for piece in pieces for value in piece.values] == [0, None, 2, None, 4, None, 6, None, 8, None]
        failed = {number for piece in pieces for number in piece.failed}
        assert failed == {1, 3, 5, 7, 9}


async def test_the_item_that_kills_its_process_fails_alone_and_by_name():
    async with node() as system:
        pieces = await pieces_of(
            system,
            function="mapped:kills",
            items=list(range(20)),
            tasks=2,
            arguments={"poison": 13},
            workers="processes",
        )
        values = [value for piece in pieces for value in piece.values]
        assert values == [None if item == 13 else item for item in range(20)]
        (failed,) = [piece.failed for piece in pieces if piece.failed]
        assert list(failed) == [13]
        assert re.match(r"item 13 cost \d workers: process", failed[13].message)
        assert "SIGKILL" in failed[13].message


async def test_tasks_that_went_with_their_worker_are_done_again_and_only_the_one_at_fault_fails():
    async with node() as system:
        pieces = await pieces_of(
            system,
            function="mapped:kills",
            items=list(range(300)),
            tasks=300,
            arguments={"poison": 200},
            workers="processes",
        )
        assert [piece.start for piece in pieces] == list(range(300))
        assert [value for piece in pieces for value in piece.values] == [*range(200), None, *range(201, 300)]
        assert [number for piece in pieces for number in piece.failed] == [200]


async def test_tasks_that_are_too_much_for_one_message_go_apart(monkeypatch):
    monkeypatch.setattr(packing, "LONGEST", 500_000)
    async with node() as system:
        items = [bytes(40_000)] * 100
        values = await system.call(
            "scheduler.map", function="builtins:len", items=items, tasks=100, workers="processes"
        )
        assert values == [40_000] * 100


async def test_more_killings_than_a_service_survives_end_no_map():
    async with node() as system:
        pieces = await pieces_of(
            system,
            function="mapped:all_kill",
            items=list(range(12)),
            tasks=12,
            arguments={"from_item": 4},
            workers="processes",
        )
        assert [value for piece in pieces for value in piece.values] == [0, 1, 2, 3, *[None] * 8]
        assert sorted(number for piece in pieces for number in piece.failed) == list(range(4, 12))


async def test_workers_that_are_killed_ten_times_cost_no_result_and_no_result_comes_twice(tmp_path):
    async with node() as system:
        stream = system.stream(
            "scheduler.imap",
            function="mapped:noted",
            items=list(range(100)),
            tasks=100,
            arguments={"folder": str(tmp_path), "seconds": 0.05},
            workers="processes",
        )
        killed, pieces = set[int](), []
        async for piece in stream:
            pieces.append(piece)
            done = Counter(int(path.name.split(".")[1]) for path in tmp_path.iterdir())
            alive = [pid for pid, items in done.items() if items > 1 and pid not in killed and psutil.pid_exists(pid)]
            if len(killed) < 10 and alive and len(pieces) >= 5 * (len(killed) + 1):
                os.kill(alive[-1], signal.SIGKILL)
                killed.add(alive[-1])
        assert [value for piece in pieces for value in piece.values] == list(range(100))
        assert not any(piece.failed for piece in pieces)
        assert len(killed) == 10


async def test_a_map_and_its_tasks_are_processes_with_their_parent(tmp_path):
    async with node() as system:
        task = asyncio.create_task(
            system.call(
                "scheduler.map",
                function="mapped:until",
                items=[1, 2],
                tasks=2,
                nice=3,
                arguments={"path": str(tmp_path / "go")},
            )
        )
        while len(processes := await system.call("scheduler.list")) < 3:
            await asyncio.sleep(0.01)
        job, *tasks = processes
        assert (job.kind, job.title, job.nice, job.process_class) == ("map", "mapped:until", 3, "batch")
        assert [(each.kind, each.parent, each.nice) for each in tasks] == [("task", job.pid, 3)] * 2
        assert "0 of 2 items done" in await system.call("scheduler.why", pid=job.pid)
        with pytest.raises(PreconditionFailed, match=f"is a task of process {job.pid}"):
            await system.call("scheduler.kill", pid=tasks[0].pid)
        (tmp_path / "go").touch()
        assert await task == [1, 2]
        assert await system.call("scheduler.list") == []
        (ended,) = await system.call("scheduler.list", ended=True)
        assert (ended.pid, ended.state) == (job.pid, "done")
        assert ended.device_seconds > 0.0


async def test_tasks_that_one_worker_was_given_at_once_are_processes_too(monkeypatch):
    go = asyncio.Event()

    async def held(self, batch, claim):
        if len(batch.tasks) > 1:
            await go.wait()
        return [Outcome(values=[task.start], seconds=1e-5) for task in batch.tasks]

    monkeypatch.setattr(Threads, "run", held)
    async with node() as system:
        items = {"start": 0, "stop": 500, "step": 1}
        task = asyncio.create_task(system.call("scheduler.map", function="mapped:square", items=items, tasks=500))
        while len(processes := await system.call("scheduler.list")) < MOST_TOGETHER:
            await asyncio.sleep(0.01)
        job, *tasks = processes
        assert len({each.pid for each in (job, *tasks)}) == 1 + len(tasks)
        assert {(each.kind, each.parent, each.owner) for each in tasks} == {("task", job.pid, job.owner)}
        why = await system.call("scheduler.why", pid=tasks[1].pid)
        assert re.search(r"runs, or is next: its worker was given \d+ others with it$", why)
        with pytest.raises(PreconditionFailed, match=f"is a task of process {job.pid}"):
            await system.call("scheduler.nice", pid=tasks[1].pid, nice=3)
        go.set()
        assert await task == list(range(500))
        with pytest.raises(NotFound):
            await system.call("scheduler.why", pid=tasks[1].pid)


async def test_tasks_leave_the_process_table_to_others():
    async with node(limit=1) as system:
        values = await system.call("scheduler.map", function="mapped:square", items=[1, 2, 3], tasks=3)
        assert values == [1, 4, 9]


async def test_workers_that_were_removed_come_with_the_next_map():
    ask = {"function": "mapped:square", "items": [3], "workers": "processes"}
    async with node() as system:
        assert await system.call("scheduler.map", **ask) == [9]
        await system.call("kernel.remove", name="worker")
        assert await system.call("scheduler.map", **ask) == [9]


async def test_a_map_that_is_killed_ends_with_the_reason():
    async with node() as system:
        task = asyncio.create_task(
            system.call("scheduler.map", function="mapped:square", items={"start": 0, "stop": 10**9, "step": 1})
        )
        while not (processes := await system.call("scheduler.list")):
            await asyncio.sleep(0.01)
        await system.call("scheduler.kill", pid=processes[0].pid, why="too long")
        with pytest.raises(CallCancelled, match="too long"):
            await task
        assert await system.call("scheduler.list") == []


async def test_a_map_that_rests_begins_no_task_until_it_goes_on(tmp_path):
    async with node() as system:
        stream = system.stream(
            "scheduler.imap",
            function="mapped:noted",
            items=list(range(30)),
            tasks=30,
            arguments={"folder": str(tmp_path), "seconds": 0.01},
        )
        pieces = [await anext(stream)]
        pid = (await system.call("scheduler.list"))[0].pid
        await system.call("scheduler.pause", pid=pid)
        assert "paused" in await system.call("scheduler.why", pid=pid)
        await asyncio.sleep(0.2)
        before = len(list(tmp_path.iterdir()))
        await asyncio.sleep(0.1)
        assert len(list(tmp_path.iterdir())) == before < 30
        await system.call("scheduler.resume", pid=pid)
        pieces += [piece async for piece in stream]
        assert [piece.start for piece in pieces] == list(range(30))


async def test_a_reader_that_takes_nothing_has_little_done_ahead(tmp_path):
    async with node() as system:
        stream = system.stream(
            "scheduler.imap",
            function="mapped:noted",
            items=list(range(5000)),
            tasks=5000,
            arguments={"folder": str(tmp_path)},
        )
        await anext(stream)
        await asyncio.sleep(0.3)
        assert len(list(tmp_path.iterdir())) < 500
        await stream.aclose()


async def test_a_reader_that_leaves_ends_the_map():
    async with node() as system:
        stream = system.stream("scheduler.imap", function="mapped:square", items={"start": 0, "stop": 10**9, "step": 1})
        await anext(stream)
        await stream.aclose()
        async with asyncio.timeout(10):
            while await system.call("scheduler.list"):
                await asyncio.sleep(0.01)


async def test_a_named_map_does_not_do_again_what_was_done(tmp_path):
    fields = {
        "function": "mapped:noted",
        "items": list(range(40)),
        "tasks": 40,
        "arguments": {"folder": str(tmp_path), "seconds": 0.01},
        "name": "nightly",
    }
    async with node() as system:
        stream = system.stream("scheduler.imap", **fields)
        taken = [(await anext(stream)).start for _ in range(15)]
        assert taken == list(range(15))
        with pytest.raises(AlreadyExists, match="nightly"):
            await system.call("scheduler.map", **fields)
        await stream.aclose()
        while await system.call("scheduler.list"):
            await asyncio.sleep(0.01)
        with pytest.raises(PreconditionFailed, match="another job"):
            await system.call("scheduler.map", **fields | {"items": [1]})
        assert await system.call("scheduler.map", **fields) == list(range(40))
        runs = [int(path.name.split(".")[0]) for path in tmp_path.iterdir()]
        assert set(runs) == set(range(40))
        assert len(runs) <= 40 + 2 * 2, "but for those that were under way"


async def test_torch_in_threads_of_one_core_uses_one():
    async with node() as system:
        ask = {"function": "mapped_torch:threads_of_torch", "items": [1, 2], "tasks": 2}
        assert await system.call("scheduler.map", **ask) == [1, 1]
        values = await system.call("scheduler.map", function="mapped_torch:multiply", items=[1, 2])
        assert values == [64.0**3, 4 * 64.0**3]


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"function": "mapped:nothing"}, NotFound, "no function 'nothing'"),
        ({"function": "no_such_module:f"}, NotFound, "cannot be imported"),
        ({"function": "os.system"}, Invalid, "is not module:function"),
        ({"function": "mapped:square", "tasks": 0}, Invalid, "at least 1"),
        ({"function": "mapped:square", "items": {"start": 0, "stop": 1, "step": 0}}, Invalid, "not 0"),
        ({"function": "mapped:square", "name": "../up"}, Invalid, "no name"),
        ({"function": "mapped:square", "reduce": "mapped:nothing"}, NotFound, "nothing"),
    ],
)
async def test_what_cannot_be_mapped_is_refused_before_anything_runs(fields, error, match):
    async with node() as system:
        with pytest.raises(error, match=match):
            await system.call("scheduler.map", **{"items": [1]} | fields)
        assert await system.call("scheduler.list", ended=True) == []


async def test_users_run_the_functions_that_the_node_allows_and_no_others():
    async with node(functions=["mapped:s*"]) as system:
        client = system.kernel.port.narrow(caller="session s1", rights=Rights(), user="ana")
        assert await client.call("scheduler.map", function="mapped:square", items=[3]) == [9]
        for function in ("mapped:kills", "os:system"):
            with pytest.raises(Denied, match="only root"):
                await client.call("scheduler.map", function=function, items=["true"])


async def test_a_map_goes_on_where_the_devices_were_found_anew(tmp_path):
    async with node() as system:
        mapping = asyncio.create_task(
            system.call(
                "scheduler.map",
                function="mapped:noted",
                items=list(range(40)),
                tasks=40,
                arguments={"folder": str(tmp_path), "seconds": 0.05},
            )
        )
        while len(list(tmp_path.iterdir())) < 4:
            await asyncio.sleep(0.01)
        await system.restart("devices")
        assert await asyncio.wait_for(mapping, 30) == list(range(40))


async def test_two_maps_that_are_the_first_with_processes_start_them_once():
    async with node() as system:
        maps = (
            system.call("scheduler.map", function="mapped:square", items=[number], workers="processes")
            for number in range(3)
        )
        assert await asyncio.gather(*maps) == [[0], [1], [4]]


async def test_of_two_maps_of_one_name_at_a_time_one_is_refused():
    async with node() as system:
        ask = {"function": "mapped:square", "items": [1, 2], "name": "nightly", "workers": "processes"}
        first, second = await asyncio.gather(
            system.call("scheduler.map", **ask), system.call("scheduler.map", **ask), return_exceptions=True
        )
        assert first == [1, 4]
        assert isinstance(second, AlreadyExists)
        assert await system.call("scheduler.map", **ask) == [1, 4]


async def test_a_map_whose_reduction_raises_has_failed_and_says_why():
    async with node() as system:
        with pytest.raises(MicrokernelError):
            await system.call("scheduler.map", function="mapped:square", items=[2, 3], tasks=2, reduce="mapped:tenth")
        (told,) = [each for each in await system.call("scheduler.list", ended=True) if each.kind == "map"]
        assert told.state == "failed"
        assert "tenth" in told.why


async def test_a_map_is_no_less_nice_than_its_user_may_be():
    async with node(functions=["mapped:*"]) as system:
        ann = system.kernel.port.narrow(caller="session ann", rights=Rights(), user="ann")
        for port, nice in ((ann, -1), (ann, 20), (system, -21)):
            with pytest.raises(Invalid, match="nice is"):
                await port.call("scheduler.map", function="mapped:square", items=[1], nice=nice)


@pytest.mark.parametrize("reduce", [None, "sum"])
async def test_no_items_give_no_values(reduce):
    async with node() as system:
        value = await system.call("scheduler.map", function="mapped:square", items=[], reduce=reduce)
        assert value == ([] if reduce is None else None)
