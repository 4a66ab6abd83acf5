"""Many callers, chains of services, deadlines, cancellations: every call ends once, with a cause, by its deadline."""

from __future__ import annotations

import asyncio

import pytest
from simulation.cast import Ann, Bob, Cem, Device, Steady, client, raise_the_curtain, witness
from simulation.seeds import batches

from microkernel.testing.simulation import Simulation, explore


async def calls(simulation: Simulation) -> None:
    """Callers by chance, some of which are cancelled at a moment by chance."""
    ledger = raise_the_curtain(simulation)
    async with simulation.boot(Ann, Bob, Cem, Device, Steady):
        over = asyncio.Event()
        async with asyncio.TaskGroup() as watching:
            watching.create_task(witness(simulation, over))
            async with asyncio.TaskGroup() as group:
                for number in range(simulation.chance.randint(2, 8)):
                    work = client(simulation, ledger, f"client {number}", calls=simulation.chance.randint(1, 6))
                    simulation.spawn(group, work, f"client {number}")
                simulation.spawn(group, cancel_some(simulation), "cancels")
            over.set()
        assert sum(ledger.together.values()) == 0
    simulation.note("outcomes", **dict(sorted(ledger.outcomes.items())))


async def cancel_some(simulation: Simulation) -> None:
    for _ in range(simulation.chance.randint(0, 3)):
        await asyncio.sleep(simulation.chance.uniform(0, 2))
        running = [task for task in simulation.clients.values() if not task.done()]
        simulation.chance.choice(running).cancel()


@pytest.mark.parametrize("seeds", batches(400), ids=str)
def test_every_call_ends_once_by_its_deadline_and_tells_the_truth(seeds):
    assert explore(calls, seeds) == len(seeds)
