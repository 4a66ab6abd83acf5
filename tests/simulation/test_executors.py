"""Compute threads of a simulation keep the promises of the real ones: order, limits, errors, cancellation, the end."""

from __future__ import annotations

import asyncio

import pytest

from microkernel import Service, handles
from microkernel.errors import Internal, Overloaded, Unavailable
from microkernel.executor import Executor
from microkernel.policy import Claim
from microkernel.testing.executors import SimulatedExecutor, SimulatedExecutors
from microkernel.testing.simulation import explore, simulate


def executor_of(simulation, **options) -> SimulatedExecutor:
    return SimulatedExecutor(Executor("cpu0", **options), simulation.chance)


def test_the_most_urgent_job_runs_first_and_equals_in_order():
    async def scenario(simulation):
        executor = executor_of(simulation)
        await executor.start()
        order = []
        jobs = [(7, "late"), (5, "first"), (5, "second"), (0, "urgent")]
        await asyncio.gather(*(executor.run(order.append, name, claim=Claim(nice=priority)) for priority, name in jobs))
        assert order == ["urgent", "first", "second", "late"]
        assert executor.status().finished == 4
        assert await executor.stop()

    simulate(scenario, seed=0, shuffle=False)


def test_no_more_jobs_run_at_a_time_than_there_are_threads():
    async def scenario(simulation):
        executor = executor_of(simulation, threads=2)
        await executor.start()
        simulation.loop.watch(lambda: None)
        jobs = [asyncio.create_task(executor.run(int)) for _ in range(9)]
        await asyncio.sleep(0)
        while not all(job.done() for job in jobs):
            assert executor.status().running <= 2
            await asyncio.sleep(0.001)
        assert await executor.stop()

    explore(scenario, range(5))


def test_a_full_queue_is_told():
    async def scenario(simulation):
        executor = executor_of(simulation, queue=1)
        await executor.start()
        running = asyncio.create_task(executor.run(int))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting = asyncio.create_task(executor.run(int))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await executor.run(int)
        await asyncio.gather(running, waiting)
        assert await executor.stop()

    simulate(scenario, seed=0, shuffle=False)


def test_what_has_to_be_done_is_done_though_nobody_waits_for_it_and_the_queue_is_full():
    async def scenario(simulation):
        executor, done = executor_of(simulation, queue=1), []
        await executor.start()
        jobs = [asyncio.create_task(executor.run(done.append, 1))]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        jobs += [
            asyncio.create_task(executor.run(done.append, 2)),
            asyncio.create_task(executor.finish(done.append, 3)),
        ]
        await asyncio.sleep(0)
        jobs[2].cancel()
        await asyncio.wait(jobs)
        assert jobs[2].cancelled()
        assert await executor.finish(done.copy) == [1, 2, 3]
        assert await executor.stop()

    simulate(scenario, seed=0, shuffle=False)


def test_a_job_that_raises_what_would_end_the_loop_is_an_internal_error():
    async def scenario(simulation):
        executor = executor_of(simulation)
        await executor.start()
        with pytest.raises(Internal, match="SystemExit"):
            await executor.run(exit)
        assert await executor.stop()

    simulate(scenario, seed=0)


def test_a_stop_ends_what_waits_and_waits_for_what_runs():
    async def scenario(simulation):
        executor = executor_of(simulation)
        await executor.start()
        ran = []
        running = asyncio.create_task(executor.run(ran.append, 1))
        waiting = asyncio.create_task(executor.run(ran.append, 2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running.cancel()  # who waits has gone, and the work goes on
        assert await executor.stop()
        with pytest.raises(Unavailable):
            await waiting
        with pytest.raises(Unavailable):
            await executor.run(int)
        assert ran == [1]

    simulate(scenario, seed=0, shuffle=False)


class Adder(Service):
    """Computes on a device of its own."""

    name = "adder"

    async def start(self) -> None:
        await self.executors.add(Executor("cpu0"))

    @handles
    async def add(self, numbers: list[int]) -> int:
        return await self.executor("cpu0").run(sum, numbers)

    async def stop(self) -> None:
        await self.executors.remove("cpu0")


def test_a_service_computes_on_a_simulated_device_without_knowing():
    async def scenario(simulation):
        async with simulation.boot(Adder) as system:
            assert await system.call("adder.add", [1, 2, 3]) == 6
            assert isinstance(system.kernel.executors, SimulatedExecutors)
            await system.restart("adder")
            assert await system.call("adder.add", [4, 5]) == 9

    assert explore(scenario, range(10)) == 10


def test_works_of_several_quanta_take_turns_and_a_stop_ends_them_between_two():
    async def scenario(simulation):
        executor, order = executor_of(simulation, cores=1), []
        await executor.start()

        def quanta(name: str, count: int):
            try:
                for _ in range(count):
                    order.append(name)
                    yield
                return name
            finally:
                order.append(f"{name} has ended")

        assert await asyncio.gather(*(executor.run(quanta, name, 2) for name in "ab")) == ["a", "b"]
        assert order == ["a", "b", "a", "b", "a has ended", "b has ended"]
        endless = asyncio.create_task(executor.run(quanta, "c", 10**9, one_core=True))
        await asyncio.sleep(0.2)
        assert await executor.stop()
        with pytest.raises(Unavailable, match="has stopped") as caught:
            await endless
        assert caught.value.may_have_run is True
        assert order[-1] == "c has ended"

    simulate(scenario, seed=0, shuffle=False)
