from __future__ import annotations

import os
import shutil
import signal
import socket

import pytest
from kept_states import JOB, KeptJob, same, state_of

from microkernel.errors import DataLoss, NotFound, Unavailable
from services.training.checkpoints.neighbour import receive_segment, restore_held, send_segment
from services.training.checkpoints.saver import CheckpointSaver
from services.training.checkpoints.shared import Content

WAIT = 90.0


@pytest.fixture
def job(tmp_path):
    return KeptJob(tmp_path, file_bytes=12_000)


@pytest.fixture
def saver(job):
    saver = CheckpointSaver(
        state_of(0), folder=job.path, job=JOB, key=job.key_path, threads=1, file_bytes=job.file_bytes
    )
    yield saver
    saver.close(WAIT)


@pytest.fixture
def held(saver):
    """The memory at a neighbour."""
    one, other = socket.socketpair()
    with one, other:
        send_segment(one, saver.segment)
        segment = receive_segment(other)
    yield segment
    segment.close()


def test_the_last_checkpoint_is_in_a_neighbours_memory(saver, held, job):
    saver.save(state_of(1))
    saver.save(state_of(2))
    saver.wait(WAIT)
    shutil.rmtree(job.path)
    manifest, state = restore_held(held, JOB, job.trusted)
    assert (manifest.number, same(state, state_of(2))) == (2, True)


def test_a_state_that_is_not_written_yet_is_no_checkpoint(saver, held, job):
    saver.save(state_of(1))
    saver.wait(WAIT)
    os.kill(saver.pid, signal.SIGSTOP)
    saver.save(state_of(2))
    assert restore_held(held, JOB, job.trusted)[0].facts.step == 1
    os.kill(saver.pid, signal.SIGCONT)


def test_a_flipped_bit_in_memory_is_found(saver, held, job):
    saver.save(state_of(1))
    saver.save(state_of(2))
    saver.wait(WAIT)
    with held.bytes_of(1) as memory:
        memory[9_999] ^= 4
    assert restore_held(held, JOB, job.trusted)[0].facts.step == 1
    with held.bytes_of(0) as memory:
        memory[9_999] ^= 4
    with pytest.raises(NotFound, match="is damaged between the bytes"):
        restore_held(held, JOB, job.trusted)


def test_a_manifest_in_memory_that_nobody_signed_is_not_believed(saver, held, job):
    saver.save(state_of(1))
    saver.wait(WAIT)
    _, told = held.told(0)
    held.say(0, 1, Content.MANIFEST, told.replace(b'"step":1', b'"step":9'))
    with pytest.raises(NotFound, match="not what was signed"):
        restore_held(held, JOB, job.trusted)


def test_empty_memory_holds_none(held, job):
    with pytest.raises(NotFound, match=r"in the memory$"):
        restore_held(held, JOB, job.trusted)


def test_a_link_that_sends_something_else_is_refused():
    one, other = socket.socketpair()
    with other:
        with one:
            one.send(b"nothing")
            with pytest.raises(DataLoss):
                receive_segment(other)
        with pytest.raises(Unavailable):
            receive_segment(other)
