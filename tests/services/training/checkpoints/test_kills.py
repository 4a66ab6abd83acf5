"""Processes are killed at random moments: the newest checkpoint loads, and is none before what was acknowledged."""

from __future__ import annotations

import os
import random
import select
import signal
import struct
import subprocess
import sys
import textwrap
import time

import msgspec
import pytest
from kept_states import KeptJob, same, slot_of, state_of

SIZES = {"weights": 400_000}  # a write takes some milliseconds: most moments are within one


def killed_writer(job: KeptJob, moment: float, first: int) -> int:
    """Fork a writer that makes checkpoints without end; kill it so many seconds after its first. The last it told."""
    told, tell = os.pipe()
    slots = [(slot_of(state_of(step, sizes=SIZES)), state_of(step, sizes=SIZES).facts) for step in (first, first + 1)]
    child = os.fork()
    if child == 0:
        try:
            writer = job.writer
            for turn in range(1 << 20):
                slot, facts = slots[turn % 2]
                number = writer.write(slot, msgspec.json.encode(facts), lambda _: None)[0].number
                os.write(tell, struct.pack("<I", number))
        finally:
            os._exit(1)
    os.close(tell)
    select.select([told], [], [], 60)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(told, "rb") as file:
        acknowledged = file.read()
    return struct.unpack("<I", acknowledged[-4:])[0]


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_the_newest_checkpoint_loads_after_any_kill_of_its_writer(tmp_path, kills):
    job = KeptJob(tmp_path, sizes=SIZES)
    chance = random.Random(kills)
    for kill in range(kills):
        first = 1 + 2 * kill
        acknowledged = killed_writer(job, chance.uniform(0.0, 0.04), first)
        checkpoint, state, notes = job.folder.newest()
        assert checkpoint.number >= acknowledged
        assert checkpoint.step in {first, first + 1}
        assert same(state, state_of(checkpoint.step, sizes=SIZES))
        assert notes == ()
    last = job.folder.newest()[0].number
    assert job.write(state_of(9999, sizes=SIZES)) == last + 1
    assert len(job.names()) == 4  # nothing is left of all these writers


TRAINER = """
    import sys, time
    root, sys.path[:] = sys.argv[1], sys.argv[2:]
    from pathlib import Path
    from kept_states import JOB, state_of
    from services.training.checkpoints.channel import Written
    from services.training.checkpoints.saver import CheckpointSaver
    sizes = {"weights": 400_000}
    root = Path(root)
    saver = CheckpointSaver(state_of(0, sizes=sizes), folder=root / "checkpoints", job=JOB, key=root / "key", threads=1)
    for step in range(1, 1 << 20):
        saver.save(state_of(step, sizes=sizes))
        for event in saver.poll():
            if isinstance(event, Written):
                print(event.number, saver.pid, flush=True)
        time.sleep(0.005)
"""


@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_the_newest_checkpoint_loads_after_any_kill_of_trainer_and_writer(tmp_path, kills):
    job = KeptJob(tmp_path, sizes=SIZES)
    chance = random.Random(kills)
    newest = 0
    for kill in range(kills):
        trainer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(TRAINER), str(tmp_path), *sys.path], stdout=subprocess.PIPE
        )
        acknowledged, writer = (int(word) for word in trainer.stdout.readline().split())
        time.sleep(chance.uniform(0.0, 0.1))
        victims = [[trainer.pid], [writer, trainer.pid], [trainer.pid, writer]][kill % 3]
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        lines = trainer.communicate(timeout=60)[0].split()
        acknowledged = int(lines[-2]) if lines else acknowledged
        assert acknowledged > newest
        checkpoint, state, notes = job.folder.newest()
        newest = checkpoint.number
        assert newest >= acknowledged
        assert same(state, state_of(state.facts.step, sizes=SIZES))
        assert notes == ()


def test_a_writer_ends_by_itself_when_its_trainer_is_killed(tmp_path):
    job = KeptJob(tmp_path, sizes=SIZES)
    trainer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TRAINER), str(tmp_path), *sys.path], stdout=subprocess.PIPE
    )
    trainer.stdout.readline()
    trainer.kill()
    trainer.communicate(timeout=60)
    job.write(state_of(7, sizes=SIZES))  # which waits for the lock of a writer that lives
    assert job.folder.newest()[0].step == 7
