from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kept_states import SIZES, KeptJob, same, slot_of, state_of

from microkernel.errors import DataLoss, Unavailable
from services.training.checkpoints.channel import Channel, FromWriter, Opened, ToWriter, Write, Written
from services.training.checkpoints.image import plan
from services.training.checkpoints.shared import Content, Segment

PROGRAM = [sys.executable, "-m", "services.training.checkpoints.writer"]


@pytest.fixture
def job(tmp_path):
    return KeptJob(tmp_path)


@pytest.fixture
def segment():
    made = Segment.create(1 << 16, plan(SIZES).size)
    yield made
    made.close()


def fill(segment: Segment, slot: int, turn: int, step: int) -> None:
    state = state_of(step)
    with segment.bytes_of(slot) as memory:
        memory[:] = slot_of(state)
    segment.say(slot, turn, Content.FACTS, msgspec.json.encode(state.facts))


class Started:
    """The program, with a channel to it."""

    def __init__(self, segment: Segment) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(90)
        with theirs:
            handles = (theirs.fileno(), segment.handle)
            self.process = subprocess.Popen(
                [*PROGRAM, *(str(each) for each in handles), str(os.getpid())],
                pass_fds=handles,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stderr=subprocess.PIPE,
            )
        self.link = ours
        self.channel = Channel(ours, FromWriter)

    def end(self) -> tuple[int, str]:
        self.channel.close()
        _, errors = self.process.communicate(timeout=90)
        return self.process.returncode, errors.decode()


@pytest.fixture
def program(segment):
    started = Started(segment)
    yield started
    started.process.kill()
    started.end()


def test_the_program_writes_what_it_is_told(program, segment, job):
    fill(segment, 0, 1, 5)
    program.channel.send(job.order)
    program.channel.send(Write(0, 1))
    assert isinstance(program.channel.receive(), Opened)
    told = program.channel.receive()
    assert isinstance(told, Written)
    assert (told.step, told.number) == (5, 1)
    assert same(job.folder.newest()[1], state_of(5))


def test_a_slot_that_was_filled_again_is_written_once_and_as_it_is_now(program, segment, job):
    fill(segment, 0, 2, 6)
    for message in (job.order, Write(0, 1), Write(0, 2), Write(0, 2)):
        program.channel.send(message)
    program.channel.receive()
    assert program.channel.receive().step == 6
    assert program.end() == (0, "")
    assert [each.step for each in job.folder.scan().complete] == [6]


def test_what_was_asked_for_is_written_when_the_trainer_is_gone(program, segment, job):
    fill(segment, 0, 1, 5)
    fill(segment, 1, 2, 6)
    for message in (job.order, Write(0, 1), Write(1, 2)):
        program.channel.send(message)
    assert program.end() == (0, "")
    assert [each.step for each in job.folder.scan().complete] == [6, 5]


def test_facts_that_are_damaged_in_memory_are_told_and_the_next_is_written(program, segment, job):
    fill(segment, 0, 1, 5)
    segment.say(0, 1, Content.FACTS, b"{")
    fill(segment, 1, 2, 6)
    for message in (job.order, Write(0, 1), Write(1, 2)):
        program.channel.send(message)
    program.channel.receive()
    assert "are damaged" in program.channel.receive().error.message
    assert program.channel.receive().step == 6


def test_the_program_ends_though_it_is_told_nonsense(program):
    program.link.sendall(struct.pack(">I", 3) + b"\xff\xff\xff")
    status, errors = program.end()
    assert status != 0
    assert "no message of a checkpoint's channel" in errors


def test_an_interrupt_is_not_for_the_writer(program, job):
    program.channel.send(job.order)
    program.channel.receive()
    assert os.getpgid(program.process.pid) != os.getpgid(0)


def test_the_end_of_a_thread_of_the_trainer_does_not_end_the_writer(program, segment, job):
    program.channel.send(job.order)
    program.channel.receive()
    os.kill(program.process.pid, signal.SIGTERM)  # what the system sends then
    fill(segment, 0, 1, 5)
    program.channel.send(Write(0, 1))
    assert program.channel.receive().step == 5


def exhaust(channel: Channel) -> None:
    while True:
        channel.receive()


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_end_the_channel(content):
    one, other = socket.socketpair()
    with one, other:
        one.sendall(content)
        one.shutdown(socket.SHUT_WR)
        with pytest.raises((DataLoss, Unavailable)):
            exhaust(Channel(other, ToWriter))


def test_a_channel_that_nobody_reads_keeps_what_it_has_and_does_not_wait():
    one, other = socket.socketpair()
    one.setblocking(False)
    ours, theirs = Channel(one, FromWriter), Channel(other, ToWriter)
    count = 0
    while not ours.waiting:
        count += 1
        ours.send(Write(0, count))
    for number in range(1, count + 1):
        assert theirs.receive() == Write(0, number)
        ours.flush()
    ours.close()
    theirs.close()
