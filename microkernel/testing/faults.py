"""Faults that are put into a simulation at an exact step: a service crashes, a caller is cancelled.

Chance finds what happens often. What needs one certain await is found by trying each of them: a run is counted in
steps, and repeated with the fault before its first step, its second, and so on. Any function of a `Simulation` is a
fault.
"""

from __future__ import annotations

from microkernel.errors import Unavailable
from microkernel.testing.simulation import Fault, Scenario, Simulation, simulate

__all__ = ["at_every_step", "cancel", "crash"]


def at_every_step(scenario: Scenario, fault: Fault, *, seed: int, stride: int = 1, shuffle: bool = True) -> int:
    """Run `scenario` once in peace, then again with `fault` before every `stride`-th step; returns how many times.

    Raises `SimulationFailed` for the first run that fails.
    """
    steps = simulate(scenario, seed=seed, shuffle=shuffle).steps
    runs = 0
    for step in range(1, steps + 1, stride):
        simulate(scenario, seed=seed, shuffle=shuffle, faults={step: fault})
        runs += 1
    return runs


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
