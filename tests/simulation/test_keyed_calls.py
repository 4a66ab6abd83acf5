"""Calls under a key over links that break: each runs once, and one order explains what all callers have seen."""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from simulation.cells import Caller, Logbook, cells_of
from simulation.seeds import batches
from simulation.test_links import TOKEN, URL, break_links, drawn_limits, everyone_gone, served

from microkernel.idempotency import Name, Outcomes, OutcomeTable
from microkernel.testing import Simulation, SimulationFailed, TestKernel, crash, explore, simulate
from microkernel.wire.client import connect
from microkernel.wire.client_session import Forgotten
from microkernel.wire.limits import Limits
from microkernel.wire.pending import Pending

FOUND_WITHIN = 50  # seeds, of a defect that is put in


async def keyed_calls(simulation: Simulation) -> None:
    """Callers by chance over a network that fails by chance, of a service that restarts by chance."""
    log = Logbook(simulation.promises.broken)
    draw_network(simulation)
    async with simulation.boot(cells_of(log)), served(simulation, short_limits(simulation)) as wire:
        async with asyncio.TaskGroup() as group:
            spawn_callers(simulation, group, log, asks_again=True)
            group.create_task(break_links(simulation), name="faults")
            group.create_task(lose_sessions(simulation), name="losses")
            group.create_task(restart_cells(simulation), name="restarts")
        await everyone_gone(simulation, wire)
    finish(simulation, log)


async def node_restarts(simulation: Simulation) -> None:
    """The node itself goes and comes back as another run: clients make again what cannot have run, and nothing else."""
    log, chance = Logbook(simulation.promises.broken), simulation.chance
    draw_network(simulation)
    later = TestKernel(cells_of(log), root=simulation.root / "later")
    async with simulation.boot(cells_of(log)) as system, later, AsyncExitStack() as first:
        limits = short_limits(simulation)
        await first.enter_async_context(served(simulation, limits, epoch="e1"))
        async with asyncio.TaskGroup() as group:
            spawn_callers(simulation, group, log, asks_again=False)
            group.create_task(break_links(simulation), name="faults")
            await asyncio.sleep(chance.uniform(0, 2))
            simulation.note("the node goes")
            if simulation.happens(0.7):  # as one that is killed: what it has begun is never answered
                cut_all(simulation)
            await first.aclose()
            await system.kernel.shutdown("restart")
            await asyncio.sleep(chance.choice((0.0, 1.0)))
            simulation.system = later
            wire = await first.enter_async_context(served(simulation, limits, epoch="e2"))
            simulation.network.refusing = False
            simulation.note("the node is back")
        await everyone_gone(simulation, wire)
    finish(simulation, log)


def draw_network(simulation: Simulation) -> None:
    network, chance = simulation.network, simulation.chance
    network.latency = chance.choice(((0.0001, 0.001), (0.001, 0.1)))
    network.segments = chance.choice(((1, 20), (1, 16384)))


def spawn_callers(simulation: Simulation, group: asyncio.TaskGroup, log: Logbook, *, asks_again: bool) -> None:
    chance = simulation.chance
    for number in range(chance.randint(2, 4)):
        caller = Caller(log, chance, calls=chance.randint(2, 8), asks_again=asks_again)
        simulation.spawn(group, caller.run(lambda: connecting(simulation)), f"client {number}")


def connecting(simulation: Simulation) -> Any:
    return connect(URL, TOKEN, reconnect=simulation.happens(0.7))


def short_limits(simulation: Simulation) -> Limits:
    """Of a node that does not wait long for a client to come back."""
    return msgspec.structs.replace(drawn_limits(simulation), resume=simulation.chance.choice((0.1, 1.0, 5.0)))


async def lose_sessions(simulation: Simulation) -> None:
    """Cut all links and let nobody in, often for longer than the node keeps their sessions."""
    chance, network = simulation.chance, simulation.network
    for _ in range(chance.randint(0, 4)):
        await asyncio.sleep(chance.uniform(0, 1))
        cut_all(simulation)
        await asyncio.sleep(chance.choice((0.0, 0.2, 2.0)))
        network.refusing = False


def cut_all(simulation: Simulation) -> None:
    """Cut all links, and let nobody in from now on."""
    network = simulation.network
    simulation.note("all cut", links=len(network.links))
    network.refusing = True
    for link in tuple(network.links.values()):
        link.cut()


async def restart_cells(simulation: Simulation) -> None:
    chance = simulation.chance
    for _ in range(chance.randint(0, 2)):
        await asyncio.sleep(chance.uniform(0, 2))
        if simulation.happens(0.5):
            crash("cells")(simulation)
        else:
            assert simulation.system is not None
            await simulation.system.restart("cells")


def finish(simulation: Simulation, log: Logbook) -> None:
    log.judge()
    outcomes = dict(sorted(log.outcomes.items()))
    simulation.note("calls", asked=log.asked, again=log.again, **outcomes)


@pytest.mark.parametrize("seeds", batches(200), ids=str)
def test_no_handler_runs_twice_for_one_key_and_one_order_explains_all_results(seeds):
    assert explore(keyed_calls, seeds) == len(seeds)


@pytest.mark.parametrize("seeds", batches(50), ids=str)
def test_what_may_have_run_before_the_node_was_restarted_is_not_made_again(seeds):
    assert explore(node_restarts, seeds) == len(seeds)


def test_callers_get_results_and_have_to_ask_again():
    """Without both, the rest here would prove nothing."""
    totals: Tally[str] = Tally()
    for seed in range(10):
        line = simulate(keyed_calls, seed=seed).history.last(1000)
        counts = next(each for each in line if " calls asked=" in each).split()[2:]
        totals.update({name: int(count) for name, count in (each.split("=") for each in counts)})
    assert totals["asked"] > 50
    assert totals["result"] > totals["asked"] / 2
    assert totals["again"] > totals["asked"] / 2


async def without_keys(self: Outcomes, name: Name, message: Any, run: Any, expires: float | None) -> Any:
    """A defect: every call runs, whatever its key."""
    return await run()


def test_a_node_that_heeds_no_keys_is_found(monkeypatch):
    monkeypatch.setattr(Outcomes, "call", without_keys)
    with pytest.raises(SimulationFailed, match="runs a second time"):
        explore(keyed_calls, range(FOUND_WITHIN))


def test_a_node_that_heeds_no_keys_is_found_by_the_results_alone(monkeypatch):
    monkeypatch.setattr(Outcomes, "call", without_keys)
    monkeypatch.setattr(Logbook, "ran", lambda log, do: log.runs.update([do.id]) if not log.runs[do.id] else None)
    monkeypatch.setattr(Caller, "doubles", 0.0)
    with pytest.raises(SimulationFailed, match="no order explains the results"):
        explore(keyed_calls, range(FOUND_WITHIN))


def test_a_node_that_forgets_how_a_call_has_ended_is_found(monkeypatch):
    monkeypatch.setattr(OutcomeTable, "_end", lambda table, outcome, now: table.forget(outcome))
    with pytest.raises(SimulationFailed, match="runs a second time"):
        explore(keyed_calls, range(FOUND_WITHIN))


def test_a_client_that_makes_calls_without_a_key_again_is_found(monkeypatch):
    monkeypatch.setattr(Pending, "_expired", lambda pending: None)
    monkeypatch.setattr(Forgotten, "may_have_arrived", lambda forgotten, number: False)
    with pytest.raises(SimulationFailed, match="runs a second time"):
        explore(keyed_calls, range(FOUND_WITHIN))


def test_a_client_that_does_not_look_at_the_epoch_is_found(monkeypatch):
    begin_anew = Pending._begin_anew
    monkeypatch.setattr(Pending, "_begin_anew", lambda self, old, *, same_epoch: begin_anew(self, old, same_epoch=True))
    with pytest.raises(SimulationFailed, match="runs a second time"):
        explore(node_restarts, range(FOUND_WITHIN))
