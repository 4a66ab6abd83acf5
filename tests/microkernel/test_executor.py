"""Compute threads: order, bounds, errors, cancellation, the end."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import weakref

import hypothesis
import pytest
from hypothesis import strategies as st
from plug import Plug

from microkernel.errors import AlreadyExists, Internal, Invalid, NotFound, Overloaded, Unavailable
from microkernel.executor import Executor
from microkernel.executors import Executors
from microkernel.policy import Claim


async def started(**options):
    executor = Executor("cpu0", **options)
    await executor.start()
    return executor


async def plugged(executor):
    plug = Plug()
    task = asyncio.create_task(executor.run(plug))
    await plug.begun()
    return plug, task


async def test_work_runs_on_the_executors_own_thread_and_its_result_comes_back():
    executor = await started()
    name = await executor.run(lambda: threading.current_thread().name)
    assert name == "cpu0.0"
    assert await executor.run(divmod, 7, 2) == (3, 1)
    assert await executor.stop()


async def test_an_error_of_the_work_is_raised_where_it_is_waited_for():
    executor = await started()
    for error in (ValueError("bad"), KeyboardInterrupt(), StopIteration(), SystemExit(1)):

        def work(error=error):
            raise error

        kind = RuntimeError if isinstance(error, StopIteration) else type(error)
        if isinstance(error, Exception):
            with pytest.raises(kind):
                await executor.run(work)
    assert await executor.run(lambda: 1) == 1, "the thread lives on"
    await executor.stop()


async def test_urgent_work_goes_first_and_equals_go_in_order():
    executor, order = await started(), []
    plug, running = await plugged(executor)
    tasks = []
    for name, priority in [("late", 9), ("middle 1", 5), ("urgent", 0), ("middle 2", 5)]:
        tasks.append(asyncio.create_task(executor.run(order.append, name, claim=Claim(nice=priority))))
        await asyncio.sleep(0)
    plug.pulled.set()
    await asyncio.gather(running, *tasks)
    assert order == ["urgent", "middle 1", "middle 2", "late"]
    await executor.stop()


async def test_a_full_queue_is_told_and_nothing_is_lost():
    executor = await started(queue=1)
    plug, running = await plugged(executor)
    waiting = asyncio.create_task(executor.run(lambda: "ran"))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="1 jobs waiting"):
        await executor.run(lambda: None)
    plug.pulled.set()
    assert await waiting == "ran"
    await running
    await executor.stop()


async def test_cancelled_work_that_waits_never_runs_and_that_runs_is_let_go():
    executor, ran = await started(), []
    plug, running = await plugged(executor)
    waiting = asyncio.create_task(executor.run(ran.append, 1))
    await asyncio.sleep(0)
    for task in (waiting, running):
        task.cancel()
    await asyncio.wait({waiting, running})
    assert waiting.cancelled()
    assert running.cancelled()
    plug.pulled.set()
    await executor.run(lambda: None)
    assert ran == []
    await executor.stop()


async def test_work_that_has_to_be_done_is_done_though_nobody_waits_for_it_and_the_queue_is_full():
    executor, ran = await started(queue=1), []
    plug, running = await plugged(executor)
    queued = asyncio.create_task(executor.run(ran.append, 1))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(executor.finish(ran.append, 2))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    plug.pulled.set()
    await asyncio.gather(running, queued)
    assert await executor.finish(ran.copy) == [1, 2]
    await executor.stop()
    with pytest.raises(Unavailable, match="is not running"):
        await executor.finish(ran.copy)


async def test_cancelled_work_makes_room_in_the_queue_at_once_and_leaves_little_behind():
    executor = await started(queue=1000)
    plug, running = await plugged(executor)
    for _ in range(5):
        waiting = [
            asyncio.create_task(executor.run(lambda: None, claim=Claim(nice=number % 10))) for number in range(1000)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await executor.run(lambda: None)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert executor.status().queued == 0
        assert len(list(executor._policy._queue)) <= 64
    plug.pulled.set()
    await running
    await executor.stop()


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=300),
    st.randoms(use_true_random=False),
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_whatever_is_cancelled_the_others_run_once_each_in_order(jobs, random):
    async def scenario():
        executor, order = await started(), []
        plug, running = await plugged(executor)
        tasks = [
            asyncio.create_task(executor.run(order.append, number, claim=Claim(nice=priority)))
            for number, (priority, _) in enumerate(jobs)
        ]
        await asyncio.sleep(0)
        cancelled = [task for task, (_, is_cancelled) in zip(tasks, jobs, strict=True) if is_cancelled]
        random.shuffle(cancelled)
        for task in cancelled:
            task.cancel()
        await asyncio.gather(*cancelled, return_exceptions=True)
        left = [(priority, number) for number, (priority, is_cancelled) in enumerate(jobs) if not is_cancelled]
        assert executor.status().queued == len(left)
        plug.pulled.set()
        await asyncio.gather(running, *tasks, return_exceptions=True)
        assert order == [number for _, number in sorted(left)]
        assert executor.status().queued == 0
        assert await executor.stop()

    asyncio.run(scenario())


async def test_work_that_was_cancelled_never_runs_though_its_caller_has_not_woken_yet():
    executor, ran = await started(), []
    plug, running = await plugged(executor)
    waiting = asyncio.create_task(executor.run(ran.append, 1))
    await asyncio.sleep(0)
    waiting.cancel()
    plug.pulled.set()
    while executor.status().finished == 0 or executor.status().queued:
        time.sleep(0.001)  # noqa: ASYNC251 - on purpose: the caller gets no turn to withdraw its work
    await asyncio.wait({waiting, running})
    assert ran == []
    await executor.stop()


async def test_each_thread_is_woken_for_its_share_of_the_work():
    executor = await started(threads=3)
    for _ in range(100):
        together = threading.Barrier(3)
        async with asyncio.timeout(30):
            await asyncio.gather(*(executor.run(together.wait, 30) for _ in range(3)))
    await executor.stop()


async def test_no_wake_up_is_lost_between_bursts():
    executor = await started(threads=2)
    async with asyncio.timeout(60):
        for size in range(200):
            results = await asyncio.gather(*(executor.run(int, number) for number in range(size % 17)))
            assert results == list(range(size % 17))
            if size % 3 == 0:
                await asyncio.sleep(0)
    await executor.stop()


async def test_nothing_of_a_job_is_kept_once_its_result_was_handed_over():
    executor = await started()
    thing = Plug()
    thing.pulled.set()
    await executor.run(thing)
    gone = weakref.ref(thing)
    del thing
    gc.collect()
    assert gone() is None
    await executor.stop()


async def test_stop_ends_waiting_work_with_a_cause_and_lets_running_work_finish():
    executor = await started()
    plug, running = await plugged(executor)
    waiting = asyncio.create_task(executor.run(lambda: None))
    await asyncio.sleep(0)
    stop = asyncio.create_task(executor.stop())
    with pytest.raises(Unavailable, match="has stopped"):
        await waiting
    plug.pulled.set()
    assert await stop
    await running
    assert executor.status().threads == 0
    with pytest.raises(Unavailable, match="not running"):
        await executor.run(lambda: None)


async def test_a_thread_that_does_not_end_is_reported():
    executor = await started()
    plug, running = await plugged(executor)
    assert not await executor.stop(timeout=0.01)
    plug.pulled.set()
    running.cancel()
    await asyncio.wait({running})


async def test_what_is_wrong_in_initialize_is_raised_by_start():
    def initialize():
        raise OSError("no such device")

    with pytest.raises(OSError, match="no such device"):
        await started(initialize=initialize)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_work_that_would_end_the_node_or_pass_for_a_cancellation_is_a_named_error(error):
    executor = await started()

    def work():
        raise error

    with pytest.raises(Internal, match=f"work.* raised {type(error).__name__}") as caught:
        await executor.run(work)
    assert caught.value.__cause__ is error
    assert await executor.run(lambda: 1) == 1, "the thread lives on"
    await executor.stop()


async def test_an_initialize_that_exits_does_not_keep_start_waiting():
    with pytest.raises(Internal, match="raised SystemExit: 3"):
        async with asyncio.timeout(10):
            await started(initialize=lambda: sys.exit(3))


@pytest.mark.parametrize("how", ["timed out", "cancelled"])
async def test_a_stop_that_gives_up_frees_those_who_wait_for_work_that_goes_on(how):
    executor = await started()
    plug, running = await plugged(executor)
    if how == "timed out":
        assert not await executor.stop(timeout=0.01)
    else:
        stop = asyncio.create_task(executor.stop())
        await asyncio.sleep(0.01)
        stop.cancel()
        await asyncio.wait({stop})
    with pytest.raises(Unavailable, match="stopped while the work still ran") as caught:
        async with asyncio.timeout(10):
            await running
    assert caught.value.may_have_run is True
    plug.pulled.set()
    assert await executor.stop()


async def test_an_executor_that_cannot_start_all_its_threads_leaves_none():
    begun = []

    def initialize():
        begun.append(threading.current_thread())
        if len(begun) == 2:
            raise OSError("no such device")

    executors = Executors()
    with pytest.raises(OSError, match="no such device"):
        await executors.add(Executor("cpu0", threads=3, initialize=initialize))
    assert len(begun) == 2
    assert not any(thread.is_alive() for thread in begun)
    with pytest.raises(NotFound):
        executors.get("cpu0")


async def test_a_start_that_is_cancelled_leaves_no_thread():
    go_on, begun = threading.Event(), []

    def initialize():
        begun.append(threading.current_thread())
        go_on.wait(30)

    executors = Executors()
    start = asyncio.create_task(executors.add(Executor("cpu0", threads=2, initialize=initialize)))
    while not begun:
        await asyncio.sleep(0.001)
    start.cancel()
    go_on.set()
    await asyncio.wait({start})
    assert start.cancelled()
    assert [thread.is_alive() for thread in begun] == [False]


async def test_python_switches_threads_as_usual_again_once_the_last_executor_has_stopped():
    usual = sys.getswitchinterval()
    first, second = await started(), await started()
    assert sys.getswitchinterval() == pytest.approx(0.001)
    await first.stop()
    assert sys.getswitchinterval() == pytest.approx(0.001)
    await second.stop()
    await second.stop()
    assert sys.getswitchinterval() == usual


async def test_the_life_of_a_thread_is_timed():
    executor = await started(threads=2)
    await asyncio.gather(*(executor.run(lambda: None) for _ in range(10)))
    await executor.stop()
    status = executor.status()
    assert (status.t_c.count, status.t_s.count, status.t_f.count) == (2, 10, 1)
    assert 0 <= status.t_s.median <= status.t_s.p99 <= status.t_s.worst


async def test_executors_are_known_by_name_and_once():
    executors = Executors()
    await executors.add(Executor("cpu0"))
    assert await executors.get("cpu0").run(lambda: 1) == 1
    with pytest.raises(AlreadyExists):
        await executors.add(Executor("cpu0"))
    with pytest.raises(NotFound, match="cpu0"):
        executors.get("gpu0")
    await executors.close()
    with pytest.raises(NotFound):
        executors.get("cpu0")


def test_an_executor_without_threads_is_refused():
    with pytest.raises(Invalid):
        Executor("cpu0", threads=0)


async def test_a_quantum_that_rests_is_told_of_other_work_when_it_comes():
    executor = await started()
    resting, told = threading.Event(), []

    def rests():
        resting.set()
        told.append(executor.rest_until_wanted(60.0))

    first = asyncio.create_task(executor.run(rests))
    await asyncio.to_thread(resting.wait)
    await executor.run(lambda: told.append("its turn"))
    await first
    assert told == [True, "its turn"]
    await executor.stop()


async def test_a_quantum_rests_no_longer_than_it_wants_to_and_not_at_all_where_others_wait():
    executor = await started()
    assert not await executor.run(executor.rest_until_wanted, 0.0)
    plug, task = await plugged(executor)
    resting = asyncio.create_task(executor.run(executor.rest_until_wanted, 60.0))
    other = asyncio.create_task(executor.run(lambda: None))
    await asyncio.sleep(0)
    plug.pulled.set()
    assert await resting
    await asyncio.gather(task, other)
    await executor.stop()


async def test_a_quantum_that_rests_is_told_of_the_end():
    executor = await started()
    resting = threading.Event()

    def rests():
        resting.set()
        return executor.rest_until_wanted(60.0)

    running = asyncio.create_task(executor.run(rests))
    await asyncio.to_thread(resting.wait)
    assert await executor.stop()
    assert await running
