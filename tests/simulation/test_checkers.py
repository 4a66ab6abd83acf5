"""The checkers can fail: a defect is put in, and they find it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from simulation.cast import Ann, Bob, Cem, Step, Work, raise_the_curtain
from simulation.test_calls import calls

from microkernel import Service, handles, streams
from microkernel.deadlines import Deadlines
from microkernel.errors import MicrokernelError, Unavailable
from microkernel.testing.faults import at_every_step
from microkernel.testing.simulation import SimulationFailed, explore, simulate


class Nap(Service):
    name = "nap"

    @handles(concurrency=1, deadline=None)
    async def sleep(self) -> None:
        await asyncio.sleep(1)

    @streams
    async def skips(self, work: Work):
        self.ledger.runs[work.id] += 1
        for number in (0, 1, 3):
            yield number


def gate_of(system, target):
    service, _, method = target.partition(".")
    return system.kernel.router.registry.entry(service).bindings[method].gate


def failure_of(scenario, seed=0):
    with pytest.raises(SimulationFailed) as caught:
        simulate(scenario, seed=seed)
    return str(caught.value)


def test_a_slot_that_is_not_given_back_is_found():
    async def scenario(simulation):
        async with simulation.boot(Nap) as system:
            gate_of(system, "nap.sleep").free -= 1

    assert "nap.sleep holds 1 slots" in failure_of(scenario)


def test_a_slot_too_many_is_found():
    async def scenario(simulation):
        async with simulation.boot(Nap) as system:
            gate_of(system, "nap.sleep").free += 1
            await asyncio.gather(system.call("nap.sleep"), system.call("nap.sleep"))

    assert "nap.sleep runs" in failure_of(scenario)


def test_a_handler_that_runs_twice_at_a_time_is_found_by_the_handler_itself():
    async def scenario(simulation):
        ledger = raise_the_curtain(simulation)
        async with simulation.boot(Ann, Bob, Cem) as system:
            simulation.promises.leave()
            gate_of(system, "ann.one").free += 1
            works = [Work(ledger.next_id(), (Step("sleep", seconds=1),)) for _ in range(2)]
            await asyncio.gather(*(ledger.ask(system.kernel.port, "ann.one", work) for work in works))

    assert "ann.one runs 2 calls at once, not 1" in failure_of(scenario)


def test_a_deadline_that_nobody_keeps_is_found(monkeypatch):
    monkeypatch.setattr(Deadlines, "_sweep", lambda _: None)
    with pytest.raises(SimulationFailed, match="after its deadline"):
        explore(calls, range(20))


def test_an_error_that_lies_about_the_call_is_found():
    async def scenario(simulation):
        ledger = raise_the_curtain(simulation)
        with contextlib.suppress(MicrokernelError), ledger.judged("a.b", Work(1), None, None, None):
            ledger.runs[1] += 1
            raise Unavailable("gone", service="a", may_have_run=False)

    assert "call 1 ran, and its error says it did not" in failure_of(scenario)


def test_a_priority_that_is_lost_on_the_way_is_found():
    async def scenario(simulation):
        ledger = raise_the_curtain(simulation)
        async with simulation.boot(Ann, Bob, Cem) as system:
            work = Work(ledger.next_id())
            with ledger.judged("ann.one", work, None, 2, None):
                await system.call("ann.one", work)

    assert "was sent with priority 2 and has 5" in failure_of(scenario)


def test_an_item_that_is_left_out_is_found():
    async def scenario(simulation):
        ledger = raise_the_curtain(simulation)
        Nap.ledger = ledger
        async with simulation.boot(Nap) as system:
            await ledger.read(system.kernel.port, "nap.skips", Work(ledger.next_id()), items=9)

    assert "sent 3 where 2 was due" in failure_of(scenario)


def test_a_call_that_never_ends_is_found_and_its_place_is_named():
    async def scenario(simulation):
        async with simulation.boot(Nap):
            await simulation.promises.call("the call", asyncio.get_running_loop().create_future())

    assert "Promises.call" in failure_of(scenario)


def test_a_cancellation_that_nobody_asked_for_is_found():
    async def scenario(simulation):
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await simulation.promises.call("the call", future)

    assert "cancellation that nobody asked for" in failure_of(scenario)


def test_an_error_that_is_none_of_the_kernels_is_found():
    async def scenario(simulation):
        async def call():
            raise KeyError("x")

        await simulation.promises.call("the call", call())

    assert "no error of the kernel's" in failure_of(scenario)


def test_a_broken_promise_is_found_though_a_handler_catches_it():
    async def scenario(simulation):
        with contextlib.suppress(AssertionError):
            simulation.promises.broken("it was promised")
        await asyncio.sleep(1)

    assert "it was promised" in failure_of(scenario)


def test_a_task_that_is_left_is_found():
    async def scenario(simulation):
        simulation.kept = asyncio.create_task(asyncio.sleep(10), name="forgotten")

    assert "forgotten" in failure_of(scenario)


def test_a_link_that_is_left_open_is_found():
    async def scenario(simulation):
        await simulation.loop.create_server(asyncio.Protocol, "10.0.0.2", 1)
        await simulation.loop.create_connection(asyncio.Protocol, "10.0.0.2", 1)

    assert "links were left open: 1" in failure_of(scenario)


def test_an_error_that_nobody_has_heard_of_is_found():
    async def scenario(simulation):
        async def fails():
            raise KeyError("x")

        simulation.loop.create_task(fails())
        await asyncio.sleep(1)

    assert "never retrieved" in failure_of(scenario)


def test_a_coroutine_that_was_never_awaited_is_found():
    async def scenario(simulation):
        asyncio.sleep(1)

    assert "never awaited" in failure_of(scenario)


def test_a_failure_names_the_command_that_repeats_it():
    from simulation.planted import fails_by_chance

    with pytest.raises(SimulationFailed) as caught:
        explore(fails_by_chance, range(1000))
    report = str(caught.value)
    command = "python -m microkernel.testing tests/simulation/planted.py:fails_by_chance --seed "
    assert command in report
    seed = int(report.partition(command)[2].split()[0])
    with pytest.raises(SimulationFailed):
        simulate(fails_by_chance, seed=seed)


def test_a_fault_comes_at_every_step_at_which_it_is_wanted_and_at_no_other():
    struck = []

    async def scenario(simulation):
        await asyncio.sleep(1)
        task = simulation.loop.create_task(asyncio.sleep(1))
        simulation.clients["task"] = task
        await task
        simulation.clients.clear()
        await asyncio.sleep(1)

    def fault(simulation):
        struck.append((simulation.loop.steps, bool(simulation.clients)))

    everywhere = at_every_step(scenario, fault, seed=0)
    assert [step for step, _ in struck] == list(range(1, everywhere + 1))
    wanted = [step for step, has_clients in struck if has_clients]
    struck.clear()
    chosen = at_every_step(scenario, fault, seed=0, when=lambda simulation: bool(simulation.clients))
    assert struck == [(step, True) for step in wanted]
    assert 0 < chosen == len(wanted) < everywhere
