"""The simulated loop: asyncio's order on a clock that jumps, and an end for whatever cannot end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from microkernel.testing.loop import EPOCH, SimulatedLoop, SimulationError


def run(work, *, seed=0, **options):
    loop = SimulatedLoop(seed, **options)
    try:
        return loop.run_until_complete(work(loop))
    finally:
        loop.close()


def test_time_jumps_to_the_next_timer_and_stands_still_in_between():
    async def work(loop):
        began = loop.time()
        await asyncio.sleep(86_400)
        return loop.time() - began

    assert run(work, limit=1e6) == pytest.approx(86_400, abs=0.001)


def test_callbacks_run_in_the_order_they_were_given():
    async def work(loop):
        order = []
        for number in range(20):
            loop.call_soon(order.append, number)
        await asyncio.sleep(0.1)
        return order

    assert run(work, shuffle=True) == list(range(20))


async def order_of_tasks(_):
    order = []

    async def one(number):
        await asyncio.sleep(0)
        order.append(number)

    await asyncio.gather(*(one(number) for number in range(20)))
    return order


def test_tasks_that_are_ready_together_run_in_the_order_of_the_seed_when_shuffled():
    assert run(order_of_tasks) == list(range(20))
    assert run(order_of_tasks, shuffle=True, seed=1) != list(range(20))
    assert run(order_of_tasks, shuffle=True, seed=1) == run(order_of_tasks, shuffle=True, seed=1)
    assert run(order_of_tasks, shuffle=True, seed=1) != run(order_of_tasks, shuffle=True, seed=2)


def test_a_set_of_tasks_has_one_order():
    async def work(_):
        tasks = {asyncio.create_task(asyncio.sleep(0), name=str(number)) for number in range(100)}
        await asyncio.wait(tasks)
        return [task.get_name() for task in tasks]

    assert run(work) == run(work)


def test_what_would_run_on_a_thread_runs_on_the_loop_after_a_while():
    async def work(loop):
        began = loop.time()
        name = await asyncio.to_thread(lambda: threading.current_thread().name)
        return name, loop.time() - began

    name, seconds = run(work)
    assert name == threading.current_thread().name
    assert seconds > 0


def test_an_error_on_a_thread_is_raised_where_it_is_waited_for():
    async def work(_):
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.to_thread(lambda: next(iter(())))

    run(work)


def test_a_thread_that_was_cancelled_before_it_began_does_not_run():
    async def work(loop):
        ran = []
        waiting = loop.run_in_executor(None, ran.append, 1)
        waiting.cancel()
        await asyncio.sleep(1)
        return ran

    assert run(work) == []


def test_a_real_thread_that_calls_the_loop_is_refused_by_name():
    async def work(loop):
        caught = []

        def call():
            try:
                loop.call_soon_threadsafe(print)
            except SimulationError as error:
                caught.append(str(error))

        thread = threading.Thread(target=call, name="stranger")
        thread.start()
        thread.join()
        return caught

    assert "stranger" in run(work)[0]


def test_a_program_that_hangs_is_told_who_waits_and_where():
    async def waits_for_nothing():
        await asyncio.Event().wait()

    async def work(loop):
        await loop.create_task(waits_for_nothing(), name="the one")

    with pytest.raises(SimulationError, match="the one: .*waits_for_nothing"):
        run(work)


def test_a_program_that_goes_on_for_ever_ends_at_the_limit():
    async def work(_):
        while True:
            await asyncio.sleep(1)

    with pytest.raises(SimulationError, match="not over after 60 s"):
        run(work, limit=60)


def test_a_program_that_goes_round_in_a_circle_ends(monkeypatch):
    monkeypatch.setattr("microkernel.testing.loop.LIMIT", 1000)

    async def work(_):
        while True:
            await asyncio.sleep(0)

    with pytest.raises(SimulationError, match="circle"):
        run(work)


def test_the_wall_clock_can_jump_while_time_goes_on():
    async def work(loop):
        before = loop.time()
        loop.jump_wall(-3600)
        assert loop.wall() == pytest.approx(EPOCH - 3600, abs=1)
        assert loop.time() == before

    run(work)


def test_a_handler_that_blocks_holds_up_everybody():
    async def work(loop):
        sleeping = asyncio.create_task(asyncio.sleep(1))
        await asyncio.sleep(0)
        loop.block(10)
        await sleeping
        return loop.time()

    assert run(work) == pytest.approx(10, abs=0.001)


def test_an_action_can_be_put_before_any_step():
    async def work(loop):
        done = []
        loop.at_step(loop.steps + 3, lambda: done.append(loop.steps))
        for _ in range(10):
            await asyncio.sleep(0)
        return done, loop.steps

    done, steps = run(work)
    assert len(done) == 1
    assert done[0] < steps


def test_what_a_watcher_raises_ends_the_run():
    async def work(loop):
        def look():
            if loop.time() > 5:
                raise AssertionError("it is past five")

        loop.watch(look)
        await asyncio.sleep(10)

    with pytest.raises(AssertionError, match="past five"):
        run(work)
