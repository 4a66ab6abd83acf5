"""A scenario that fails with some seeds, to see what is said then."""

from __future__ import annotations

from microkernel.testing.simulation import Simulation


async def fails_by_chance(simulation: Simulation) -> None:
    """Fails once in twenty times."""
    assert not simulation.happens(0.05), "by chance"
