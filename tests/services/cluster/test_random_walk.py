"""Small clusters to which all kinds of things happen: in the end all agree, and nobody who was buried came back."""

from __future__ import annotations

import pytest

from tests.services.cluster.random_walk import Walk
from tests.simulation.seeds import batches

STEPS = 50


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seeds", batches(16))
def test_after_all_that_has_happened_everybody_knows_who_is_there(seeds):
    for seed in seeds:
        walk = Walk(seed)
        try:
            walk.walk(STEPS)
            walk.settle()
            walk.check()
        except AssertionError as error:
            error.add_note(f"MICROKERNEL_SEED={seed} python -m pytest {__file__}")
            raise


def test_a_walk_comes_out_the_same_for_the_same_seed():
    def told(seed):
        walk = Walk(seed)
        log = []
        for host in walk.hosts.values():
            host._noted = lambda host, action: log.append((walk.network.now, host.name, action))
        walk.walk(10)
        return log

    first = told(3)
    assert len(first) > 100
    assert first == told(3) != told(4)
