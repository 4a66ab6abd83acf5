"""A seed says everything: the same seed is the same run, here and in another process."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from simulation.test_calls import calls
from simulation.test_links import links
from simulation.test_lives import lives

from microkernel.testing.loop import SimulatedLoop
from microkernel.testing.replay import Complaints, replayable
from microkernel.testing.simulation import simulate

FILES = {"calls": calls, "lives": lives, "links": links}


def steps_of(scenario, seed):
    """All steps of a run, and its digest."""
    steps = []
    outcome = simulate(scenario, seed=seed, traced=lambda now, step: steps.append(f"{now:.6f} {step}"))
    return steps, outcome.digest


@pytest.mark.parametrize("scenario", FILES.values(), ids=FILES)
def test_a_seed_repeats_its_run_step_by_step(scenario):
    for seed in range(10):
        first, digest = steps_of(scenario, seed)
        second, again = steps_of(scenario, seed)
        assert next((pair for pair in zip(first, second, strict=False) if pair[0] != pair[1]), None) is None
        assert (len(first), digest) == (len(second), again)


@pytest.mark.parametrize("scenario", FILES.values(), ids=FILES)
def test_another_seed_is_another_run(scenario):
    assert len({simulate(scenario, seed=seed).digest for seed in range(10)}) == 10


@pytest.mark.parametrize("name", FILES)
def test_another_process_with_other_hashes_runs_the_same(name):
    file = Path(__file__).with_name(f"test_{name}.py")
    command = [sys.executable, "-m", "microkernel.testing", f"{file}:{name}", "--seed", "3", "--seeds", "3"]
    told = []
    for hashes in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashes}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        told.append(ended.stdout)
    assert told[0] == told[1]
    for seed in (3, 4, 5):
        assert simulate(FILES[name], seed=seed).digest in told[0]


def drawn(seed):
    loop = SimulatedLoop(seed)
    try:
        with replayable(seed, loop, Complaints(loop)):
            return (
                random.random(), random.Random().random(), secrets.token_hex(), uuid.uuid4(), os.urandom(4),
                time.time(), time.monotonic(), time.perf_counter(),
            )  # fmt: skip
    finally:
        loop.close()


def test_chance_secrets_and_clocks_come_from_the_seed():
    assert drawn(1) == drawn(1)
    assert all(one != two for one, two in zip(drawn(1)[:5], drawn(2)[:5], strict=True))


def test_what_was_replaced_is_put_back():
    state, urandom, clock = random.getstate(), os.urandom, time.time
    drawn(1)
    assert random.getstate() == state
    assert os.urandom is urandom
    assert time.time is clock
    assert secrets.token_hex() != secrets.token_hex()


def test_a_sleep_that_blocks_takes_virtual_time():
    async def scenario(simulation):
        began = simulation.loop.time()
        time.sleep(100)  # noqa: ASYNC251 - what a handler must not do
        assert simulation.loop.time() - began >= 100

    assert simulate(scenario, seed=0).seconds >= 100


def test_a_thread_that_was_there_before_lives_in_real_time():
    ended, slept = threading.Event(), threading.Event()

    def other() -> None:
        while not ended.is_set():
            time.sleep(0.001)
            os.urandom(4)
            random.Random()
            slept.set()

    async def scenario(simulation):
        slept.clear()
        assert slept.wait(60)
        assert simulation.loop.time() < 0.001

    thread = threading.Thread(target=other)
    thread.start()
    try:
        assert simulate(scenario, seed=0).seconds < 0.001
    finally:
        ended.set()
        thread.join()
