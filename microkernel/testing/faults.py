"""Faults that are put into a simulation at an exact step: a service crashes, a caller is cancelled.

Chance finds what happens often. What needs one certain await is found by trying each of them: a run is counted in
steps, and repeated with the fault before its first step, its second, and so on. Any function of a `Simulation` is a
fault.
"""

from __future__ import annotations

from collections.abc import Callable

from microkernel.errors import Unavailable
from microkernel.testing.simulation import Fault, Scenario, Simulation, simulate

__all__ = ["at_every_step", "cancel", "crash"]


def at_every_step(
    scenario: Scenario,
    fault: Fault,
    *,
    seed: int,
    stride: int = 1,
    shuffle: bool = True,
    when: Callable[[Simulation], bool] | None = None,
) -> int:
    """Run `scenario` once in peace, then again with `fault` before every `stride`-th step; returns how many times.

    Steps before which `when` is false are left out. Raises `SimulationFailed` for the first run that fails.
    """
    count = simulate(scenario, seed=seed, shuffle=shuffle).steps
    steps = list(range(1, count + 1, stride))
    if when is not None:
        steps = _steps_when(when, scenario, steps, seed=seed, shuffle=shuffle)
    for step in steps:
        simulate(scenario, seed=seed, shuffle=shuffle, faults={step: fault})
    return len(steps)


def _steps_when(
    when: Callable[[Simulation], bool], scenario: Scenario, steps: list[int], *, seed: int, shuffle: bool
) -> list[int]:
    """Those of `steps` before which `when` is true; up to the fault, a run is the one in peace."""
    found = []

    def look_at(step: int) -> Fault:
        def look(simulation: Simulation) -> None:
            if when(simulation):
                found.append(step)

        return look

    simulate(scenario, seed=seed, shuffle=shuffle, faults={step: look_at(step) for step in steps})
    return found


def crash(name: str) -> Fault:
    """A fault: service `name` crashes, if it is up."""

    def fault(simulation: Simulation) -> None:
        system = simulation.system
        if system is not None and name in system.kernel.router.registry:
            instance = system.kernel.instance(name)
            if instance is not None:
                instance.crash(Unavailable(f"service '{name}' was made to crash", service=name, retry_after=1.0))

    return fault


def cancel(name: str) -> Fault:
    """A fault: the task that was started as `name` by `Simulation.spawn` is cancelled, if it runs."""

    def fault(simulation: Simulation) -> None:
        if (task := simulation.clients.get(name)) is not None:
            task.cancel()

    return fault
