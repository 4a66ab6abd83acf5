"""Quanta of a compute thread: who has the next one, beside whom, and who pays for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from plug import Plug

from microkernel.errors import Invalid, Unavailable
from microkernel.executor import Executor
from microkernel.policy import Arrival, Claim, Entry, Policy, ProcessClass

BACKGROUND = Claim(process_class=ProcessClass.BACKGROUND)
INTERACTIVE = Claim(process_class=ProcessClass.INTERACTIVE)


class Watched(Arrival):
    """Notes what is charged."""

    name = "watched"

    def __init__(self) -> None:
        super().__init__()
        self.charged: list[tuple[Claim, float]] = []

    def charge(self, claim: Claim, seconds: float) -> None:
        self.charged.append((claim, seconds))


class LastFirst(Policy):
    """A policy of somebody else's, which knows nothing of keys."""

    name = "last first"

    def __init__(self) -> None:
        self._stack: list[Entry] = []

    def __len__(self) -> int:
        return len(self._stack)

    def enter(self, claim, item) -> Entry:
        self._stack.append(Entry(claim, item))
        return self._stack[-1]

    def leave(self, entry: Entry) -> None:
        if entry in self._stack:
            self._stack.remove(entry)

    def choose(self) -> Entry | None:
        return self._stack.pop() if self._stack else None

    def first(self) -> Entry | None:
        return self._stack[-1] if self._stack else None

    def entries(self) -> Iterator[Entry]:
        return iter(tuple(self._stack))

    def why(self, entry: Entry) -> str:
        return f"behind {len(self._stack) - self._stack.index(entry) - 1} that came later"


@pytest.fixture
async def executor():
    executor = Executor("cpu0", cores=2)
    await executor.start()
    yield executor
    await executor.stop()


def counting(to: int, order: list[str], name: str):
    for _ in range(to):
        order.append(name)
        yield
    return f"{name} is done"


async def test_a_generator_runs_quantum_by_quantum_and_what_it_returns_is_the_result(executor):
    order: list[str] = []
    assert await executor.run(counting, 3, order, "a") == "a is done"
    assert order == ["a"] * 3
    assert executor.status().finished == 1


async def test_works_of_equal_claims_take_turns(executor):
    order: list[str] = []
    plug = Plug()
    blocked = asyncio.create_task(executor.run(plug))
    await plug.begun()
    works = [asyncio.create_task(executor.run(counting, 3, order, name)) for name in "ab"]
    await asyncio.sleep(0)
    plug.pulled.set()
    assert await asyncio.gather(*works) == ["a is done", "b is done"]
    assert order == ["a", "b"] * 3
    await blocked


async def test_urgent_work_has_the_next_quantum_of_what_runs(executor):
    order: list[str] = []
    plug = Plug()

    def background():
        order.append("begins")
        plug()
        yield
        order.append("ends")
        yield

    slow = asyncio.create_task(executor.run(background, claim=BACKGROUND))
    await plug.begun()
    urgent = asyncio.create_task(executor.run(order.append, "urgent", claim=INTERACTIVE))
    await asyncio.sleep(0)
    plug.pulled.set()
    await asyncio.gather(slow, urgent)
    assert order == ["begins", "urgent", "ends"]


async def test_an_error_in_a_later_quantum_is_raised_where_it_is_waited_for(executor):
    def failing():
        yield
        raise ValueError("in the second")

    with pytest.raises(ValueError, match="in the second"):
        await executor.run(failing)
    assert await executor.run(int, 3) == 3


async def test_work_that_nobody_waits_for_is_ended_between_two_quanta_on_its_own_thread(executor):
    ended: list[str] = []
    plug = Plug()

    def endless():
        try:
            while True:
                plug()
                yield
        finally:
            ended.append(threading.current_thread().name)

    task = asyncio.create_task(executor.run(endless, claim=BACKGROUND))
    await plug.begun()
    task.cancel()
    await asyncio.wait({task})
    plug.pulled.set()
    await executor.run(int)  # the quantum that ran has ended, and the last turn was its
    assert ended == ["cpu0.0"]
    assert executor.status().queued == 0


async def test_work_cancelled_while_it_waits_for_its_next_quantum_is_ended_before_anything_else(executor):
    order: list[str] = []
    first, plug = Plug(), Plug()

    def work():
        try:
            first()
            yield
            order.append("never")
            yield
        finally:
            order.append("ended")

    waiting = asyncio.create_task(executor.run(work, claim=BACKGROUND))
    await first.begun()
    blocking = asyncio.create_task(executor.run(plug))
    await asyncio.sleep(0)
    first.pulled.set()
    await plug.begun()
    waiting.cancel()
    later = asyncio.create_task(executor.run(order.append, "later"))
    await asyncio.wait({waiting})
    plug.pulled.set()
    await asyncio.gather(blocking, later)
    assert order == ["ended", "later"]


async def test_a_stop_ends_work_between_two_quanta_on_its_own_thread():
    executor = Executor("cpu0")
    await executor.start()
    ended: list[str] = []
    first, plug = Plug(), Plug()

    def work():
        try:
            first()
            yield
        finally:
            ended.append(threading.current_thread().name)

    waiting = asyncio.create_task(executor.run(work, claim=BACKGROUND))
    await first.begun()
    blocking = asyncio.create_task(executor.run(plug))
    await asyncio.sleep(0)
    first.pulled.set()
    await plug.begun()
    stop = asyncio.create_task(executor.stop())
    with pytest.raises(Unavailable, match="has stopped") as caught:
        await waiting
    assert caught.value.may_have_run is True
    plug.pulled.set()
    assert await stop
    await blocking
    assert ended == ["cpu0.0"]


async def test_work_of_one_core_runs_on_threads_of_its_own_side_by_side(executor):
    together = threading.Barrier(2)

    def meet() -> str:
        together.wait(30)
        return threading.current_thread().name

    names = await asyncio.gather(*(executor.run(meet, one_core=True) for _ in range(2)))
    assert sorted(names) == ["cpu0.core0", "cpu0.core1"]
    assert await executor.run(lambda: threading.current_thread().name) == "cpu0.0"


async def test_no_work_of_one_core_begins_while_the_whole_device_is_taken(executor):
    plug, order = Plug(), []
    whole = asyncio.create_task(executor.run(plug))
    await plug.begun()
    cores = [asyncio.create_task(executor.run(order.append, number, one_core=True)) for number in range(5)]
    await asyncio.sleep(0.01)
    assert order == []
    assert executor.status().queued == 5
    plug.pulled.set()
    await asyncio.gather(whole, *cores)
    assert sorted(order) == list(range(5))


async def test_urgent_work_takes_the_device_beside_quanta_that_are_about_to_end(executor):
    plugs, order = [Plug(), Plug()], []
    cores = [asyncio.create_task(executor.run(plug, one_core=True, claim=BACKGROUND)) for plug in plugs]
    for plug in plugs:
        await plug.begun()
    more = asyncio.create_task(executor.run(order.append, "core", one_core=True, claim=BACKGROUND))
    await executor.run(order.append, "whole", claim=INTERACTIVE)
    assert order == ["whole"]
    for plug in plugs:
        plug.pulled.set()
    await asyncio.gather(*cores, more)


async def test_work_of_one_core_and_of_the_whole_device_is_all_done_whatever_comes_when(executor):
    done: list[int] = []

    def quanta(number: int):
        for _ in range(number % 3):
            yield
        done.append(number)

    async with asyncio.timeout(60):
        for burst in range(60):
            jobs = [
                executor.run(
                    quanta,
                    number,
                    one_core=(number * 7 + burst) % 3 > 0,
                    claim=BACKGROUND if number % 2 else INTERACTIVE,
                )
                for number in range(burst % 23)
            ]
            await asyncio.gather(*jobs)
            assert sorted(done) == list(range(burst % 23))
            done.clear()
            if burst % 4 == 0:
                await asyncio.sleep(0.001)


async def test_an_executor_without_threads_for_one_core_says_so():
    executor = Executor("gpu0")
    await executor.start()
    with pytest.raises(Invalid, match="no threads for work that takes one core"):
        await executor.run(int, one_core=True)
    await executor.stop()


async def test_no_more_threads_of_one_core_are_at_work_than_are_allowed(executor):
    executor.limit_cores(1)
    assert (executor.core_threads, executor.status().core_threads) == (1, 1)
    plugs = [Plug(), Plug()]
    jobs = [asyncio.create_task(executor.run(plug, one_core=True)) for plug in plugs]
    await plugs[0].begun()
    assert (executor.status().running, executor.status().queued) == (1, 1)
    executor.limit_cores(2)
    await plugs[1].begun()
    executor.limit_cores(1)
    for plug in plugs:
        plug.pulled.set()
    await asyncio.gather(*jobs)
    await asyncio.gather(*(executor.run(int, one_core=True) for _ in range(20)))


async def test_each_core_thread_is_prepared_by_a_function_of_its_own():
    prepared: list[str] = []
    executor = Executor("cpu0", cores=2, initialize_core=lambda: prepared.append(threading.current_thread().name))
    await executor.start()
    assert prepared == ["cpu0.core0", "cpu0.core1"]
    assert (executor.status().threads, executor.status().core_threads) == (1, 2)
    await executor.stop()


async def test_a_policy_that_is_set_while_work_waits_decides_from_then_on(executor):
    plug, order = Plug(), []
    blocked = asyncio.create_task(executor.run(plug))
    await plug.begun()
    jobs = [asyncio.create_task(executor.run(order.append, number)) for number in range(4)]
    await asyncio.sleep(0)
    executor.schedule_by(LastFirst())
    said = executor.look(lambda policy: [policy.why(entry) for entry in policy.entries()])
    assert said == [f"behind {number} that came later" for number in (3, 2, 1, 0)]
    jobs[1].cancel()
    await asyncio.wait({jobs[1]})
    plug.pulled.set()
    await asyncio.gather(blocked, *jobs, return_exceptions=True)
    assert order == [3, 2, 0]
    assert executor.status().policy == "last first"


async def test_a_quantum_is_charged_to_whose_it_was(executor):
    policy = Watched()
    executor.schedule_by(policy)
    await executor.run(int, claim=BACKGROUND)
    assert [claim for claim, seconds in policy.charged if seconds >= 0.0] == [BACKGROUND]


async def test_a_quantum_of_several_is_charged_to_each_by_its_share(executor):
    policy, shares = Watched(), {}
    executor.schedule_by(policy)
    ana, bo = Claim(owner="ana"), Claim(owner="bo")

    def step() -> None:
        shares.update({ana: 3, bo: 1})

    await executor.run(step, shares=shares)
    (first, first_seconds), (second, second_seconds) = policy.charged
    assert (first, second) == (ana, bo)
    assert first_seconds == pytest.approx(3 * second_seconds)
