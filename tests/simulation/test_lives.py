"""Services that crash, fail to start, are restarted, taken out and put back while calls run: they fail alone."""

from __future__ import annotations

import asyncio

import pytest
from simulation.cast import (
    Ann,
    Bob,
    Cem,
    Device,
    Ledger,
    Player,
    Steady,
    Step,
    Work,
    client,
    raise_the_curtain,
    witness,
)
from simulation.seeds import batches

from microkernel.config import Config, Supervision
from microkernel.errors import MicrokernelError, Unavailable
from microkernel.plugins import Plugin
from microkernel.registry import ServiceState
from microkernel.service import Isolation
from microkernel.supervisor import Strategy
from microkernel.testing import Simulation, TestKernel, at_every_step, cancel, crash, explore

QUIET = 20.0  # seconds; the longest restart delay is 15
SETTLED = 300.0  # seconds in which whatever was begun has come to its end


class Dependent(Player):
    """Cannot be without ann and is restarted with it."""

    name = "dependent"
    needs = ("ann",)
    uses = ("bob", "cem")


async def lives(simulation: Simulation) -> None:
    """Callers, and somebody who crashes, restarts, removes and adds the services that they call."""
    ledger = raise_the_curtain(simulation)
    async with simulation.boot(Ann, Bob, Cem, Dependent, Device, Steady, config=drawn_config(simulation)) as system:
        over = asyncio.Event()
        async with asyncio.TaskGroup() as watching:
            watching.create_task(witness(simulation, over))
            async with asyncio.TaskGroup() as group:
                for number in range(simulation.chance.randint(1, 5)):
                    work = client(simulation, ledger, f"client {number}", calls=4, crashes=True)
                    simulation.spawn(group, work, f"client {number}")
                for number in range(simulation.chance.randint(1, 3)):
                    group.create_task(operator(simulation, ledger, system), name=f"operator {number}")
            over.set()
        await settle(system)
        await check_states(simulation, ledger, system)
    simulation.note("outcomes", **dict(sorted(ledger.outcomes.items())))


def drawn_config(simulation: Simulation) -> Config:
    """How services run, by chance."""
    chance, names = simulation.chance, ("ann", "bob", "cem", "dependent")
    return Config(
        isolation={name: chance.choice((Isolation.INLINE, Isolation.INLINE, Isolation.TASK)) for name in names},
        instances={name: chance.choice((1, 1, 1, 2, 3)) for name in names},
        supervision=Supervision(strategy=chance.choice((Strategy.REST_FOR_ONE, Strategy.ONE_FOR_ONE))),
    )


async def operator(simulation: Simulation, ledger: Ledger, system: TestKernel) -> None:
    """Does things to services, by chance."""
    chance = simulation.chance
    plugins = {kind.name: Plugin(kind.name, "test", kind=kind) for kind in (Ann, Bob, Cem, Dependent, Device)}
    for _ in range(chance.randint(1, 6)):
        await asyncio.sleep(chance.choice((0.0, chance.uniform(0, 0.3), chance.uniform(0, 2))))
        name = chance.choice(tuple(plugins))
        what = chance.choice(("crash", "crash", "crash", "restart", "restart", "fail", "remove", "add", "wall"))
        simulation.note(what, name=name)
        try:
            match what:
                case "crash":
                    if (instance := system.kernel.instance(name)) is not None:
                        instance.crash(Unavailable(f"{name} was made to crash", service=name))
                case "fail":
                    ledger.failing_starts[name] += chance.randint(1, 4)
                case "restart":
                    await system.restart(name)
                case "remove":
                    await system.kernel.remove(name)
                case "add":
                    await system.kernel.add(plugins[name])
                case "wall":
                    simulation.loop.jump_wall(chance.uniform(-1e5, 1e5))
        except MicrokernelError as error:
            simulation.note("refused", why=type(error).__name__)


async def settle(system: TestKernel) -> None:
    """Return when no service has been on its way for as long as the longest restart delay."""
    quiet = 0.0
    async with asyncio.timeout(SETTLED):
        while quiet < QUIET:
            quiet = 0.0 if any(entry.state.passing for entry in system.kernel.router.registry) else quiet + 0.5
            await asyncio.sleep(0.5)


async def check_states(simulation: Simulation, ledger: Ledger, system: TestKernel) -> None:
    """Whoever is ready answers; whoever is not says why, and nobody of theirs is left."""
    for entry in system.kernel.router.registry:
        instance = system.kernel.instance(entry.name)
        if entry.state is ServiceState.READY:
            if entry.name in {"kernel", "steady", "device"}:
                continue
            assert instance is not None
            await ledger.ask(system.kernel.port, f"{entry.name}.many", Work(ledger.next_id()), deadline=1.0)
            continue
        assert entry.state in {ServiceState.QUARANTINED, ServiceState.STOPPED}, f"{entry.name} is {entry.state}"
        assert entry.why, f"{entry.name} is {entry.state} and nobody says why"
        assert instance is None, f"{entry.name} is {entry.state} and still there"
    assert sum(ledger.together.values()) == 0


async def chain(simulation: Simulation) -> None:
    """A few calls through three services, small enough to fail at each of its steps."""
    ledger = raise_the_curtain(simulation)
    async with simulation.boot(Ann, Bob, Cem, Dependent, Steady) as system:
        async with asyncio.TaskGroup() as group:
            for number, target in enumerate(("ann.one", "ann.one", "dependent.few", "ann.numbers")):
                simulation.spawn(group, one_call(ledger, system, target), f"client {number}")
        simulation.clients.clear()
        await settle(system)
        await check_states(simulation, ledger, system)


async def one_call(ledger: Ledger, system: TestKernel, target: str) -> None:
    inner = Work(ledger.next_id(), (Step("sleep", seconds=0.02), Step("thread")))
    middle = Work(ledger.next_id(), (Step("call", target="cem.one", work=inner), Step("sleep", seconds=0.01)))
    outer = Work(ledger.next_id(), (Step("call", target="bob.few", work=middle), Step("sleep", seconds=0.01)))
    try:
        if target.endswith("numbers"):
            await ledger.read(system.kernel.port, target, outer, items=5, deadline=5.0)
        else:
            await ledger.ask(system.kernel.port, target, outer, deadline=5.0)
    except MicrokernelError:
        pass  # judged where it ended


def they_call(simulation: Simulation) -> bool:
    """Whether there are callers: a fault before they come and after they have gone is none of theirs."""
    return bool(simulation.clients)


@pytest.mark.parametrize("seeds", batches(250), ids=str)
def test_services_that_crash_take_nobody_with_them_and_come_to_rest(seeds):
    assert explore(lives, seeds) == len(seeds)


@pytest.mark.parametrize("name", ["ann", "bob", "cem"])
def test_a_crash_at_any_step_ends_every_call_with_a_cause(name):
    assert at_every_step(chain, crash(name), seed=1, when=they_call) > 40


@pytest.mark.parametrize("name", ["client 0", "client 1", "client 3"])
def test_a_cancellation_at_any_step_gives_every_slot_back(name):
    assert at_every_step(chain, cancel(name), seed=1, when=they_call) > 40
