"""Runs a scenario on a simulated loop, from a seed: the real kernel, a virtual clock, and faults.

After FoundationDB's simulation and etcd's robustness tests: whatever a seed does, it does again, so that a failure
found once can be looked at as often as it takes. A scenario is an async function of a `Simulation`:

>>> async def restarts(simulation: Simulation) -> None:
...     async with simulation.boot(KeyValue) as system:
...         ...
>>> simulate(restarts, seed=7)
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from microkernel.plugins import Plugin
from microkernel.service import Service
from microkernel.testing.history import History
from microkernel.testing.kernel import TestKernel
from microkernel.testing.loop import SimulatedLoop
from microkernel.testing.promises import Promises
from microkernel.testing.replay import Complaints, replayable

__all__ = ["Fault", "Outcome", "Scenario", "Simulation", "SimulationFailed", "explore", "simulate"]

LAST_LINES = 30  # of the history, in the report of a failure


class SimulationFailed(AssertionError):
    """A scenario has failed; says with which seed, and how to see it again. The cause is the scenario's own error."""


class Outcome(msgspec.Struct, frozen=True):
    """What came of a run: `digest` is the same whenever the run is; `seconds` are virtual."""

    seed: int
    digest: str
    steps: int
    seconds: float
    history: History


class Simulation:
    """What a scenario holds. `chance` is its own source of choices, so that one choice more elsewhere changes none."""

    def __init__(self, seed: int, loop: SimulatedLoop, root: Path) -> None:
        self.seed = seed
        self.loop = loop
        self.root = root
        self.network = loop.network
        self.chance = random.Random(f"{seed} scenario")  # noqa: S311 - a simulation's, no secret
        self.history = History()
        self.promises = Promises(loop)
        self.system: TestKernel | None = None
        self.clients: dict[str, asyncio.Task[Any]] = {}

    @asynccontextmanager
    async def boot(
        self,
        *services: type[Service] | Service | Plugin,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> AsyncIterator[TestKernel]:
        """A `TestKernel` that is watched for the kernel's promises; at the end nothing may be left of any call.

        All nodes of a scenario have one state folder, so that the second finds what the first has left.
        """
        async with TestKernel(*services, settings=settings, root=self.root, **options) as system:
            self.system = system
            self.promises.watch(system.kernel)
            yield system
            self.clients.clear()
            self.promises.check_rest()
            self.promises.leave()
        self.system = None

    def note(self, what: str, **details: Any) -> None:
        """Put a line into the history, and so into the digest."""
        self.history.note(self.loop.time(), what, **details)

    def spawn(self, group: asyncio.TaskGroup, work: Any, name: str) -> asyncio.Task[Any]:
        """A task of `group` that faults may choose to cancel."""
        task = group.create_task(work, name=name)
        self.clients[name] = task
        return task

    def happens(self, probability: float) -> bool:
        """Whether something happens that does so with this probability."""
        return self.chance.random() < probability


Scenario = Callable[[Simulation], Awaitable[None]]
Fault = Callable[[Simulation], None]


def simulate(
    scenario: Scenario,
    *,
    seed: int,
    shuffle: bool = True,
    limit: float = 3600.0,
    faults: Mapping[int, Fault] | None = None,
    traced: Callable[[float, str], None] | None = None,
) -> Outcome:
    """Run `scenario` to its end. Raises `SimulationFailed`; `limit` is in seconds of virtual time.

    `faults` are done just before the steps with their numbers. `traced` is told of every step: of two runs that should
    be one, the first line that differs is where chance came in.
    """
    loop = SimulatedLoop(seed, shuffle=shuffle, limit=limit)
    loop.traced = traced
    with tempfile.TemporaryDirectory(prefix="microkernel-") as folder:
        simulation = Simulation(seed, loop, Path(folder))
        for step, fault in (faults or {}).items():
            loop.at_step(step, lambda fault=fault: fault(simulation))  # type: ignore[misc] # its default is its meaning
        complaints = Complaints(loop)
        try:
            with _outer_loop_at_rest(), replayable(seed, loop, complaints), contextlib.closing(loop):
                _run(scenario, simulation, complaints)
            _raise_complaints(loop, complaints)
        except Exception as error:
            raise _failed(scenario, simulation, complaints, faults, error) from error
    for line in complaints.lines:
        simulation.history.note(0.0, line)
    simulation.note("over", steps=loop.steps)
    return Outcome(seed, simulation.history.digest, loop.steps, loop.time(), simulation.history)


def explore(scenario: Scenario, seeds: Iterable[int], *, shuffle: bool = True) -> int:
    """Run `scenario` with each of `seeds`; returns how many. Raises `SimulationFailed` for the first that fails."""
    count = 0
    for seed in seeds:
        simulate(scenario, seed=seed, shuffle=shuffle)
        count += 1
    return count


def _run(scenario: Scenario, simulation: Simulation, complaints: Complaints) -> None:
    loop = simulation.loop

    async def whole() -> None:
        await scenario(simulation)

    try:
        loop.run_until_complete(whole())
    except BaseException:
        lines = tuple(complaints.lines)
        simulation.history.close()  # what is cleared away is no part of the failure
        loop.clear_away()
        complaints.lines[:] = lines
        complaints.serious.clear()
        loop.failures.clear()
        raise
    loop.run_until_complete(loop.network.quiet())
    loop.run_until_complete(loop.shutdown_asyncgens())
    left = sorted(task.get_name() for task in asyncio.all_tasks(loop))
    assert not left, f"tasks were left running: {left}"
    assert not loop.network.links, f"links were left open: {len(loop.network.links)}"


@contextlib.contextmanager
def _outer_loop_at_rest() -> Iterator[None]:
    """Allow a simulation inside of a running loop, which stands still meanwhile: an async test may simulate."""
    outer = asyncio._get_running_loop()  # noqa: SLF001 - documented, for those who write event loops
    asyncio._set_running_loop(None)  # noqa: SLF001
    try:
        yield
    finally:
        asyncio._set_running_loop(outer)  # noqa: SLF001


def _raise_complaints(loop: SimulatedLoop, complaints: Complaints) -> None:
    heard = [f"{context.get('message')}: {context.get('exception')!r}" for context in loop.failures]
    heard += complaints.serious
    assert not heard, "the loop was told of what nobody caught:\n" + "\n".join(f"  {each}" for each in heard)


def _failed(
    scenario: Scenario,
    simulation: Simulation,
    complaints: Complaints,
    faults: Mapping[int, Fault] | None,
    error: Exception,
) -> SimulationFailed:
    fault = f" and a fault at step {', '.join(map(str, faults))}" if faults else ""
    lines = [
        f"seed {simulation.seed}{fault} fails: {_innermost(error)}",
        "to see it again:",
        f"  {_command(scenario, simulation.seed, faults)}",
    ]
    lines += ["the last of its history:", *(f"  {line}" for line in simulation.history.last(LAST_LINES))]
    if complaints.lines:
        lines += ["the last of its log:", *(f"  {line}" for line in complaints.lines[-LAST_LINES:])]
    return SimulationFailed("\n".join(lines))


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def _command(scenario: Scenario, seed: int, faults: Mapping[int, Fault] | None) -> str:
    code = inspect.unwrap(scenario).__code__ if inspect.isfunction(scenario) else None
    if code is None or faults or "." in code.co_qualname or not Path(code.co_filename).is_file():
        return f"simulate({getattr(scenario, '__name__', 'scenario')}, seed={seed})"
    path = Path(code.co_filename)
    here = Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    return f"python -m microkernel.testing {shown}:{code.co_name} --seed {seed}"
