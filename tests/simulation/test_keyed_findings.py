"""What the checks of calls under a key have found, each as small as it can be told; what is not mended fails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from simulation.cells import Do, Logbook, cells_of
from simulation.test_links import TOKEN, URL, served

from microkernel import Service, handles
from microkernel.errors import MicrokernelError, Overloaded, Unavailable
from microkernel.testing import Simulation, TestKernel, simulate
from microkernel.wire.client import connect
from microkernel.wire.limits import Limits


def test_a_call_that_is_made_again_and_then_rests_on_its_link_does_not_run_when_its_outcome_is_forgotten():
    """The first ran at 0 s, the second was sent at 103 s over a link that stalled, and arrived at 128 s."""
    runs = []

    async def scenario(simulation: Simulation) -> None:
        network, log = simulation.network, Logbook(simulation.promises.broken)
        async with (
            simulation.boot(cells_of(log)),
            served(simulation, Limits()),
            connect(URL, TOKEN, reconnect=True) as system,
        ):
            link = network.any_link()
            link.stall(there=False)
            call = asyncio.create_task(ended(system, Do(1, "c0", "add", 1), key="k", deadline=300.0))
            await asyncio.sleep(1.0)
            link.cut()
            network.refusing = True
            await asyncio.sleep(100.0)
            network.refusing = False
            while not (network.links and system._session.is_open):
                await asyncio.sleep(0.0001)
            link = network.any_link()
            link.stall(back=False)
            await asyncio.sleep(25.0)
            link.flow()
            await call
        runs.append(log.runs[1])

    simulate(scenario, seed=0)
    assert runs == [1]


def test_a_call_that_was_made_again_may_have_run_though_its_second_attempt_never_left():
    """Each had run; in the new session the client's own rate kept some from being sent again by their deadline."""

    async def scenario(simulation: Simulation) -> None:
        network, log = simulation.network, Logbook(simulation.promises.broken)
        limits = Limits(resume=0.2, heartbeat=1.0, rate=2.0, burst=20)
        async with (
            simulation.boot(cells_of(log)),
            served(simulation, limits),
            connect(URL, TOKEN, reconnect=True) as system,
        ):
            link = network.any_link()
            link.stall(there=False)
            calls = [Do(number, "c0", "add", 1) for number in range(14)]
            ends = asyncio.gather(*(ended(system, do, key=f"k{do.id}", deadline=4.0) for do in calls))
            await asyncio.sleep(2.5)
            link.cut()
            network.refusing = True
            await asyncio.sleep(0.5)
            network.refusing = False
            errors = [end for end in await ends if isinstance(end, MicrokernelError)]
            assert errors, "some are not sent again in time"
            assert set(log.runs.values()) == {1}
            if any(error.may_have_run is False for error in errors):
                log.broken("a call ran, and its error says that it did not")

    simulate(scenario, seed=0)


async def ended(system: Any, do: Do, *, key: str, deadline: float) -> Any:
    try:
        return await system.call("cells.wide", do, idempotency_key=key, deadline=deadline, result_type=int)
    except MicrokernelError as error:
        return error


async def test_an_outcome_that_is_kept_is_given_while_its_service_does_not_answer():
    """Found over sockets: of a call that had run, a quarantined service said that it had not."""
    log = Logbook(pytest.fail)
    kind = cells_of(log)
    kind.restart_policy = "temporary"
    async with TestKernel(kind) as kernel:
        first = await kernel.call("cells.wide", Do(1, "c0", "add", 5), idempotency_key="k")
        instance = kernel.kernel.instance("cells")
        assert instance is not None
        instance.crash(Unavailable("it was made to crash", service="cells"))
        await kernel.until("cells", "stopped", "failed", "quarantined")
        assert await kernel.call("cells.wide", Do(1, "c0", "add", 5), idempotency_key="k") == first


class Front(Service):
    """Counts what it does, and then asks somebody who is busy."""

    name = "front"
    uses = ("back",)

    async def start(self) -> None:
        self.runs = 0

    @handles
    async def work(self) -> None:
        self.runs += 1
        await self.call("back.work")


class Back(Service):
    name = "back"

    async def start(self) -> None:
        self.go = asyncio.Event()
        self.entered = asyncio.Event()

    @handles(concurrency=1, queue=0)
    async def work(self) -> None:
        self.entered.set()
        await self.go.wait()


async def test_a_handler_that_ran_and_was_then_refused_by_another_does_not_run_again():
    """`OVERLOADED` of a call that the handler makes is no word of whether the handler itself has run."""
    front, back = Front(), Back()
    async with TestKernel(front, back) as kernel:
        busy = asyncio.create_task(kernel.call("back.work"))
        await back.entered.wait()
        for _ in range(2):
            with pytest.raises(Overloaded):
                await kernel.call("front.work", idempotency_key="k")
        assert front.runs == 1
        back.go.set()
        await busy
