"""The door of one handler: admission, order, deadline, deadlock, kill."""

from __future__ import annotations

import asyncio
import random

import pytest

from microkernel.deadlines import Deadlines
from microkernel.errors import (
    DeadlineExceeded,
    Deadlock,
    Internal,
    MicrokernelError,
    NotFound,
    Overloaded,
    Unavailable,
)
from microkernel.gate import Gate, Waits
from microkernel.message import PRIORITY, Call, current_call


class Door:
    """A gate around a handler of the test's."""

    def __init__(self, handler, *, concurrency=1, queue=10, target="x.y", waits=None, deadlines=None):
        self.deadlines = deadlines or Deadlines(asyncio.get_running_loop())
        self.gate = Gate(
            target,
            handler,
            concurrency=concurrency,
            queue=queue,
            deadlines=self.deadlines,
            waits=Waits() if waits is None else waits,
        )

    async def call(self, *message, priority=PRIORITY, within=None, chain=()):
        deadline = None if within is None else asyncio.get_running_loop().time() + within
        return await self.gate.call(message, Call(caller="test", priority=priority, deadline=deadline, chain=chain))

    def stream(self, *message, within=None):
        deadline = None if within is None else asyncio.get_running_loop().time() + within
        return self.gate.stream(message, Call(caller="test", deadline=deadline))


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_handler_runs_in_the_task_of_its_caller():
    async def handler():
        return asyncio.current_task()

    assert await Door(handler).call() is asyncio.current_task()


async def test_a_handler_sees_the_call_it_answers_and_its_caller_does_not():
    async def handler():
        return current_call()

    call = await Door(handler).call(priority=2)
    assert (call.caller, call.priority) == ("test", 2)
    assert current_call() is None


async def test_a_waiter_cancelled_after_its_grant_gives_the_slot_back():
    release, inside = asyncio.Event(), []

    async def handler(name):
        inside.append(name)
        assert len(inside) == 1, "two calls are inside of a door for one"
        await release.wait()
        inside.remove(name)

    door = Door(handler)

    async def call_and_cancel_the_next():
        await door.call("first")  # on return the slot is reserved for the second, which has not woken yet
        second.cancel()

    first = asyncio.create_task(call_and_cancel_the_next())
    await turns()
    second = asyncio.create_task(door.call("second"))
    third = asyncio.create_task(door.call("third"))
    await turns()
    release.set()
    await asyncio.wait({first, second, third})
    assert second.cancelled()
    assert third.exception() is None
    assert door.gate.in_flight == 0


async def test_at_most_the_given_number_of_calls_is_inside_whatever_is_cancelled():
    inside = worst = 0

    async def handler():
        nonlocal inside, worst
        inside += 1
        worst = max(worst, inside)
        try:
            await asyncio.sleep(0)
        finally:
            inside -= 1

    door = Door(handler, concurrency=2, queue=100)
    tasks = [asyncio.create_task(door.call()) for _ in range(60)]
    for number, task in enumerate(tasks):
        await asyncio.sleep(0)
        if number % 3 == 0:
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert worst == 2
    assert (door.gate.in_flight, door.gate.queued) == (0, 0)


async def test_the_most_urgent_waiter_goes_first_and_equals_go_in_order():
    release, order = asyncio.Event(), []

    async def handler(name):
        await release.wait()
        order.append(name)

    door = Door(handler)
    tasks = [asyncio.create_task(door.call("running"))]
    await turns()
    for name, priority in [("late", 9), ("middle 1", 5), ("urgent", 0), ("middle 2", 5)]:
        tasks.append(asyncio.create_task(door.call(name, priority=priority)))
        await turns()
    release.set()
    await asyncio.gather(*tasks)
    assert order == ["running", "urgent", "middle 1", "middle 2", "late"]


async def test_a_full_queue_is_told_with_a_time_to_come_back():
    release = asyncio.Event()

    async def handler():
        await release.wait()

    door = Door(handler, queue=1)
    tasks = [asyncio.create_task(door.call()) for _ in range(2)]
    await turns()
    with pytest.raises(Overloaded, match="1 calls running and 1 waiting") as caught:
        await door.call()
    assert caught.value.retry_after
    release.set()
    await asyncio.gather(*tasks)


async def test_an_urgent_call_takes_the_place_of_the_last_of_the_least_urgent_in_a_full_queue():
    release, order = asyncio.Event(), []

    async def handler(name):
        order.append(name)
        await release.wait()

    door = Door(handler, queue=3)
    calls = {"running": asyncio.create_task(door.call("running"))}
    await turns()
    for name, priority in (("usual 1", 5), ("late 1", 8), ("late 2", 8)):
        calls[name] = asyncio.create_task(door.call(name, priority=priority))
        await turns()
    with pytest.raises(Overloaded, match="3 waiting"):
        await door.call("as late", priority=8)
    calls["urgent"] = asyncio.create_task(door.call("urgent", priority=0))
    with pytest.raises(Overloaded, match="a more urgent one came") as displaced:
        await calls.pop("late 2")
    assert (displaced.value.may_have_run, displaced.value.retry_after) == (False, 1.0)
    assert door.gate.queued == 3
    release.set()
    await asyncio.gather(*calls.values())
    assert order == ["running", "urgent", "usual 1", "late 1"]


async def test_a_waiter_that_gives_up_leaves_its_place_in_the_queue():
    release = asyncio.Event()

    async def handler():
        await release.wait()

    door = Door(handler, queue=1)
    running, waiting = asyncio.create_task(door.call()), None
    await turns()
    waiting = asyncio.create_task(door.call())
    await turns()
    waiting.cancel()
    await asyncio.wait({waiting})
    assert door.gate.queued == 0
    release.set()
    await running


async def test_a_call_that_runs_ends_at_its_deadline_and_says_that_it_may_have_run():
    async def handler():
        await asyncio.sleep(3600)

    with pytest.raises(DeadlineExceeded) as caught:
        await Door(handler).call(within=0.02)
    assert caught.value.may_have_run is True
    assert asyncio.current_task().cancelling() == 0, "the caller's task must be able to go on"


async def test_a_call_that_waits_ends_at_its_deadline_and_says_that_it_has_not_run():
    release = asyncio.Event()

    async def handler():
        await release.wait()

    door = Door(handler)
    running = asyncio.create_task(door.call())
    await turns()
    with pytest.raises(DeadlineExceeded) as caught:
        await door.call(within=0.02)
    assert caught.value.may_have_run is False
    assert door.gate.queued == 0
    release.set()
    await running


async def test_a_deadline_runs_the_finally_blocks_of_the_handler():
    cleaned = []

    async def handler():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    with pytest.raises(DeadlineExceeded):
        await Door(handler).call(within=0.01)
    assert cleaned == [True]


async def test_killed_calls_end_with_the_reason_and_their_callers_go_on():
    async def handler():
        await asyncio.sleep(3600)

    door = Door(handler, concurrency=3)
    went_on = []

    async def caller():
        with pytest.raises(Unavailable, match="crashed") as caught:
            await door.call()
        await asyncio.sleep(0)
        went_on.append(caught.value)

    tasks = [asyncio.create_task(caller()) for _ in range(3)]
    await turns()
    door.gate.kill(Unavailable("it crashed"))
    await asyncio.gather(*tasks)
    assert len({id(error) for error in went_on}) == 3, "each caller needs an error of its own"
    assert door.gate.in_flight == 0


async def test_a_caller_cancelled_while_its_call_is_killed_stays_cancelled():
    async def handler():
        await asyncio.sleep(3600)

    door = Door(handler)
    task = asyncio.create_task(door.call())
    await turns()
    door.gate.kill(Unavailable("it crashed"))
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


async def test_killing_an_outer_call_ends_what_it_waits_for_inside():
    ended = []

    async def inner():
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("inner")

    inside = Door(inner, target="in.ner")

    async def outer():
        try:
            await inside.call()
        finally:
            ended.append("outer")

    outside = Door(outer, target="out.er")
    task = asyncio.create_task(outside.call())
    await turns()
    outside.gate.kill(Unavailable("outer is gone"))
    with pytest.raises(Unavailable, match="outer is gone"):
        await task
    assert ended == ["inner", "outer"]
    assert inside.gate.in_flight == 0


async def test_a_handler_that_kills_its_own_gate_reaches_its_next_await_and_no_further():
    reached = []

    async def handler():
        door.gate.kill(Unavailable("my own doing"))
        reached.append("before")
        await asyncio.sleep(1)
        reached.append("after")

    door = Door(handler)

    async def suspended_first():
        await asyncio.sleep(0)
        await handler()

    door.gate.handler = suspended_first
    with pytest.raises(Unavailable, match="my own doing"):
        await door.call()
    assert reached == ["before"]


async def test_a_closed_gate_ends_those_who_wait_and_lets_those_inside_finish():
    release = asyncio.Event()

    async def handler():
        await release.wait()
        return "done"

    door = Door(handler)
    inside = asyncio.create_task(door.call())
    await turns()
    waiting = asyncio.create_task(door.call())
    await turns()
    door.gate.close(Unavailable("it restarts", retry_after=1))
    with pytest.raises(Unavailable, match="it restarts"):
        await waiting
    with pytest.raises(Unavailable, match="it restarts"):
        await door.call()
    release.set()
    assert await inside == "done"
    await door.gate.drained()


async def test_a_handler_that_calls_itself_through_a_full_gate_is_told_at_once():
    async def handler(again):
        if again:
            await door.call(False, chain=("x.y", "x.y"))

    door = Door(handler)
    with pytest.raises(Deadlock, match=r"x\.y → x\.y"):
        await door.call(True, chain=("x.y",))
    assert door.gate.in_flight == 0


async def test_two_tasks_that_wait_for_each_other_are_a_deadlock_for_the_second():
    waits, both = Waits(), asyncio.Barrier(2)

    async def a(other):
        if other:
            await both.wait()
            await doors["b"].call(False, chain=("a.a",))

    async def b(other):
        if other:
            await both.wait()
            await doors["a"].call(False, chain=("b.b",))

    doors = {"a": Door(a, target="a.a", waits=waits), "b": Door(b, target="b.b", waits=waits)}
    results = await asyncio.gather(
        doors["a"].call(True, chain=("a.a",)), doors["b"].call(True, chain=("b.b",)), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["Deadlock", "NoneType"]


async def test_waiting_for_a_slot_that_somebody_else_will_free_is_no_deadlock():
    release = asyncio.Event()

    async def handler(again):
        if again:
            await door.call(False, chain=("x.y",))
        else:
            await release.wait()

    door = Door(handler, concurrency=2)
    elsewhere = asyncio.create_task(door.call(False, chain=("x.y",)))
    await turns()
    task = asyncio.create_task(door.call(True, chain=("x.y",)))
    await turns()
    assert not task.done()
    release.set()
    await asyncio.gather(task, elsewhere)


async def test_errors_of_ours_pass_and_others_become_internal_with_their_cause():
    async def handler(error):
        raise error

    door = Door(handler)
    with pytest.raises(NotFound):
        await door.call(NotFound("no such key"))
    with pytest.raises(Internal, match="KeyError") as caught:
        await door.call(KeyError("k"))
    assert caught.value.causes == ("KeyError: 'k'",)
    assert caught.value.service == "x"
    assert door.gate.failures == 2


async def test_a_stream_runs_only_as_far_as_it_is_read():
    produced = []

    async def handler():
        for number in range(100):
            produced.append(number)
            yield number

    stream = Door(handler).stream()
    assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
    assert produced == [0, 1, 2]
    await stream.aclose()


async def test_a_stream_closed_early_runs_the_finally_block_and_frees_the_slot():
    ended = []

    async def handler():
        try:
            while True:
                yield 1
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    door = Door(handler)
    stream = door.stream()
    await anext(stream)
    assert door.gate.in_flight == 1
    await stream.aclose()
    assert ended == [True]
    assert door.gate.in_flight == 0


@pytest.mark.parametrize("pulling", [True, False])
async def test_a_killed_stream_ends_with_the_reason_whether_or_not_it_is_being_read(pulling):
    async def handler():
        yield 1
        await asyncio.sleep(3600 if pulling else 0)
        yield 2

    door = Door(handler)
    stream = door.stream()
    await anext(stream)
    reader = None
    if pulling:
        reader = asyncio.create_task(anext(stream))
        await turns()
    door.gate.kill(Unavailable("it restarts"))
    with pytest.raises(Unavailable, match="it restarts"):
        await (reader or anext(stream))
    assert door.gate.in_flight == 0


async def test_a_stream_ends_at_its_deadline_even_while_nobody_reads():
    async def handler():
        while True:
            yield 1

    stream = Door(handler).stream(within=0.02)
    await anext(stream)
    await asyncio.sleep(0.1)
    with pytest.raises(DeadlineExceeded):
        await anext(stream)


async def test_deadlines_share_one_timer_and_leave_nothing_behind():
    async def handler():
        await asyncio.sleep(0)

    door = Door(handler, concurrency=1000)
    await asyncio.gather(*(door.call(within=0.05) for _ in range(500)))
    await asyncio.sleep(0.15)
    assert door.deadlines._timer is None
    assert not door.deadlines._buckets


async def test_a_task_that_cleans_up_after_its_cancellation_can_make_calls_that_end_at_their_deadline():
    async def handler():
        await asyncio.sleep(3600)

    door, log = Door(handler), []

    async def caller():
        try:
            await asyncio.sleep(3600)
        finally:
            with pytest.raises(DeadlineExceeded):
                await door.call(within=0.02)
            log.append("cleaned up")

    task = asyncio.create_task(caller())
    await turns()
    task.cancel()
    await asyncio.wait({task})
    assert log == ["cleaned up"]
    assert task.cancelled()


async def test_a_holder_that_was_told_to_give_up_its_wait_is_no_part_of_a_deadlock():
    waits, held = Waits(), asyncio.Event()

    async def a(then=None):
        held.set()
        await (doors["b"].call(chain=("a.a", "b.b")) if then is None else then.wait())

    async def b(then=None):
        await (doors["a"].call(chain=("b.b", "a.a")) if then is None else then.wait())

    doors = {"a": Door(a, target="a.a", waits=waits), "b": Door(b, target="b.b", waits=waits)}
    go_on, ended = asyncio.Event(), []

    async def cancel_the_waiter_and_call_in_its_place():
        await go_on.wait()
        waiter.cancel()  # it holds a.a, waits at b.b, and has not woken yet
        await doors["a"].call(asyncio.Event(), chain=("b.b", "a.a"), within=0.02)

    async def holder_of_b():
        await doors["b"].call(Then(cancel_the_waiter_and_call_in_its_place, ended), chain=("b.b",))

    b_task = asyncio.create_task(holder_of_b())
    await turns()
    waiter = asyncio.create_task(doors["a"].call(chain=("a.a",)))
    await held.wait()
    await turns()
    go_on.set()
    await asyncio.wait({waiter, b_task})
    assert waiter.cancelled()
    assert [type(error) for error in ended] == [DeadlineExceeded], "it was admitted, and then its time ran out"


@pytest.mark.parametrize("seed", range(20))
async def test_calls_that_only_go_down_are_never_a_deadlock_whatever_is_cancelled_or_expires(seed):
    tower = Tower(random.Random(seed))
    tasks = [asyncio.create_task(tower.enter(tower.chance.randrange(len(tower.floors)))) for _ in range(60)]
    for task in tasks:
        await asyncio.sleep(0)
        if tower.chance.random() < 0.2:
            task.cancel()
    async with asyncio.timeout(20):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} <= {type(None), DeadlineExceeded, asyncio.CancelledError}
    for gate in (door.gate for doors in tower.floors for door in doors):
        assert (gate.in_flight, gate.queued, gate._reserved, len(gate.running)) == (0, 0, 0, 0)
    assert not tower.waits


class Tower:
    """Floors with a door for calls and one for streams; whoever is inside may go on to the floor below."""

    def __init__(self, chance, height=4):
        self.chance = chance
        self.waits = Waits()
        self.deadlines = Deadlines(asyncio.get_running_loop())
        self.floors = [self._floor(level, is_last=level == height - 1) for level in range(height)]

    async def enter(self, level):
        called, streamed = self.floors[level]
        within = self.chance.choice([None, None, 0.002])
        if self.chance.random() < 0.7:
            await called.call(within=within)
            return
        items = streamed.stream(within=within)
        try:
            for _ in range(self.chance.randrange(1, 5)):
                await anext(items, None)
        finally:
            await items.aclose()

    def _floor(self, level, *, is_last):
        async def call():
            await turns(self.chance.randrange(3))
            if not is_last and self.chance.random() < 0.8:
                await self.enter(level + 1)
            await turns(self.chance.randrange(3))

        async def stream():
            for _ in range(3):
                await call()
                yield level

        return tuple(
            Door(
                handler,
                concurrency=self.chance.choice([1, 1, 2]),
                queue=1000,
                target=f"floor{level}.{handler.__name__}",
                waits=self.waits,
                deadlines=self.deadlines,
            )
            for handler in (call, stream)
        )


class Then:
    """Something to wait for that runs `work` and keeps what it raises."""

    def __init__(self, work, errors):
        self._work = work
        self._errors = errors

    async def wait(self):
        try:
            await self._work()
        except MicrokernelError as error:
            self._errors.append(error)
