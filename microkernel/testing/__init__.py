"""For tests of services: the real kernel on the test's own loop or on a simulated one, and what must not be left."""

from microkernel.testing.faults import at_every_step, cancel, crash
from microkernel.testing.kernel import TestKernel
from microkernel.testing.simulation import Outcome, Scenario, Simulation, SimulationFailed, explore, simulate

__all__ = [
    "Outcome",
    "Scenario",
    "Simulation",
    "SimulationFailed",
    "TestKernel",
    "at_every_step",
    "cancel",
    "crash",
    "explore",
    "simulate",
]
