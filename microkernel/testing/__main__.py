"""Runs a scenario of a file again: `python -m microkernel.testing FILE.py:FUNCTION --seed 7`, as a failure says."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from microkernel.testing.simulation import Scenario, simulate


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m microkernel.testing FILE:SCENARIO --seed N [--seeds N] [--trace]`."""
    parser = argparse.ArgumentParser(prog="python -m microkernel.testing", description=__doc__)
    parser.add_argument("scenario", help="FILE.py:FUNCTION")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds to run")
    parser.add_argument("--trace", action="store_true", help="write every step")
    given = parser.parse_args(arguments)
    scenario = _load(given.scenario)
    write = sys.stdout.write

    def traced(now: float, step: str) -> None:
        write(f"{now:10.6f} {step}\n")

    for seed in range(given.seed, given.seed + given.seeds):
        outcome = simulate(scenario, seed=seed, traced=traced if given.trace else None)
        write(f"seed {seed}: {outcome.steps} steps, {outcome.seconds:.3f} s of virtual time, {outcome.digest}\n")
    return 0


def _load(where: str) -> Scenario:
    file, _, name = where.rpartition(":")
    path = Path(file).resolve()
    sys.path[:0] = [str(path.parent), str(path.parent.parent)]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None, f"{file} is not a Python file"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    scenario: Scenario = getattr(module, name)
    return scenario


if __name__ == "__main__":
    sys.exit(main())
