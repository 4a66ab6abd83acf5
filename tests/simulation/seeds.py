"""Which seeds the simulations run with: 1,000 in CI, 20,000 at night (`slow`), others on request.

`MICROKERNEL_SEEDS=100000` is how many in all; `MICROKERNEL_SEED=123` is the only one.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

CI = 1_000  # seeds in all, of all scenarios
NIGHT = 20_000
BATCH = 50


def batches(share: int) -> list[Any]:
    """The seeds of a scenario that gets `share` of the 1,000 that CI runs, in parts that a time limit can hold."""
    if only := os.environ.get("MICROKERNEL_SEED"):
        return [range(int(only), int(only) + 1)]
    if wanted := os.environ.get("MICROKERNEL_SEEDS"):
        return _parts(0, share * int(wanted) // CI)
    at_night = [pytest.param(part, marks=pytest.mark.slow) for part in _parts(share, share * NIGHT // CI)]
    return [*_parts(0, share), *at_night]


def _parts(first: int, end: int) -> list[range]:
    return [range(start, min(start + BATCH, end)) for start in range(first, end, BATCH)]
