"""What the simulations have found, each as small as it can be told. What is not mended yet is expected to fail."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from simulation.cast import Ann, Bob, Step, Work, raise_the_curtain
from simulation.test_links import TOKEN, URL, served

from microkernel import Service, handles
from microkernel.errors import DeadlineExceeded, MicrokernelError, NotFound, Unavailable
from microkernel.testing import Simulation, TestKernel, at_every_step, cancel, simulate
from microkernel.wire.client import Stream, connect
from microkernel.wire.limits import Limits


def test_a_call_whose_inner_call_did_not_run_may_have_run_itself():
    """Found by `calls` with seed 62: whoever trusts the error asks again, and the outer handler runs twice."""

    async def scenario(simulation: Simulation) -> None:
        ledger = raise_the_curtain(simulation)
        async with simulation.boot(Ann, Bob) as system:
            busy = Work(ledger.next_id(), (Step("sleep", seconds=10.0),))
            inner = Work(ledger.next_id(), (Step("sleep"),))
            outer = Work(ledger.next_id(), (Step("call", target="bob.one", work=inner, deadline=0.1),))
            first = simulation.loop.create_task(ledger.ask(system.kernel.port, "bob.one", busy))
            await asyncio.sleep(0.01)
            with contextlib.suppress(MicrokernelError):
                await ledger.ask(system.kernel.port, "ann.one", outer, deadline=5.0)
            await first

    simulate(scenario, seed=0)


class Fails(Service):
    """Fails after a while, in a task of its own."""

    name = "fails"
    isolation = "task"

    @handles
    async def soon(self) -> None:
        await asyncio.sleep(0.01)
        raise NotFound("it is not here")


def test_a_caller_that_is_cancelled_as_its_task_fails_leaves_no_error_unheard():
    """Found by `lives` with seed 100: the task had ended, and whoever waited for it never asked how."""

    async def scenario(simulation: Simulation) -> None:
        async with simulation.boot(Fails) as system, asyncio.TaskGroup() as group:
            simulation.spawn(group, _ask_in_vain(system), "client")

    assert at_every_step(scenario, cancel("client"), seed=0) > 20


def test_a_caller_that_is_cancelled_twice_leaves_nothing_of_its_task():
    """Found by `lives` with seed 2151: the second cancellation came while the first was seen off."""

    async def scenario(simulation: Simulation) -> None:
        async with simulation.boot(Fails) as system, asyncio.TaskGroup() as group:
            simulation.spawn(group, _ask_in_vain(system), "client")

    def twice(simulation: Simulation) -> None:
        for later in (1, 2, 3):
            simulation.loop.at_step(simulation.loop.steps + later, lambda: cancel("client")(simulation))

    assert at_every_step(scenario, twice, seed=0) > 20


async def _ask_in_vain(system: TestKernel) -> None:
    with contextlib.suppress(NotFound):
        await system.call("fails.soon")


def test_inputs_that_end_with_the_frame_that_opened_their_stream_end():
    """Found by `links` with seed 5: the end came before the stream's task had begun, and was dropped."""

    async def scenario(simulation: Simulation) -> None:
        ledger = raise_the_curtain(simulation)
        async with simulation.boot(Ann), served(simulation, Limits()), connect(URL, TOKEN) as system:
            work = Work(ledger.next_id())
            with ledger.judged("ann.mirror", work, None, None, None, remote=True):
                async with system.stream("ann.mirror", work, result_type=int) as stream:
                    await stream.finish()
                    assert [number async for number in stream] == []

    simulate(scenario, seed=0)


def test_a_stream_that_two_tasks_use_first_at_the_same_time_is_opened_once_for_both():
    """Found by `links` with seed 58: while one waited for the link, the other took the stream for closed."""

    async def scenario(simulation: Simulation) -> None:
        ledger = raise_the_curtain(simulation)
        async with simulation.boot(Ann), served(simulation, Limits()), connect(URL, TOKEN) as system:
            simulation.network.any_link().cut()
            await asyncio.sleep(0.01)
            work = Work(ledger.next_id())
            with ledger.judged("ann.mirror", work, None, None, None, remote=True):
                async with system.stream("ann.mirror", work, result_type=int) as stream:
                    reading = asyncio.create_task(_numbers(stream))
                    await asyncio.sleep(0)
                    await stream.send(0)
                    await stream.finish()
                    assert await reading == [0]

    simulate(scenario, seed=0)


def test_the_wait_for_a_turn_on_the_link_is_part_of_a_calls_time():
    """Found by `links` with seed 31: the deadline began anew when the call had its turn."""

    async def scenario(simulation: Simulation) -> None:
        ledger = raise_the_curtain(simulation)
        async with simulation.boot(Ann), served(simulation, Limits(inflight=1)), connect(URL, TOKEN) as system:
            first = Work(ledger.next_id(), (Step("sleep", seconds=1.0),))
            second = Work(ledger.next_id(), (Step("sleep", seconds=9.0),))
            ledger.judged("ann.many", first, None, None, None, remote=True)
            ledger.judged("ann.many", second, 1.5, None, None, remote=True)
            before = asyncio.create_task(system.call("ann.many", first))
            await asyncio.sleep(0.1)
            with pytest.raises(DeadlineExceeded):
                await simulation.promises.call("it", system.call("ann.many", second, deadline=1.5), deadline=1.5)
            await before

    simulate(scenario, seed=0)


async def _numbers(stream: Stream) -> list[int]:
    return [number async for number in stream]


def test_a_node_that_takes_a_link_and_never_answers_is_given_up():
    """Found by `links` with seed 269: half a link, cut while the client waited for the answer to its upgrade."""

    async def scenario(simulation: Simulation) -> None:
        server = await simulation.loop.create_server(asyncio.Protocol, "10.0.0.2", 7070)
        with pytest.raises(Unavailable, match="did not answer"):
            async with connect("http://10.0.0.2:7070", "a-token-for-the-simulation"):
                pass
        server.close()

    simulate(scenario, seed=0)
