from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kept_states import holding

from microkernel.errors import DataLoss, Invalid
from services.training.checkpoints.image import HUGE
from services.training.checkpoints.shared import SLOTS, Content, Segment


@pytest.fixture
def segment():
    made = Segment.create(10_000, HUGE)
    yield made
    made.close()


@pytest.fixture
def holder(segment):
    """Another process, which has taken the first slot."""
    with holding(segment, 0) as process:
        yield process


def test_a_slot_that_another_process_has_cannot_be_taken(segment, holder):
    assert not segment.take(0)
    assert segment.take(1)


def test_a_slot_is_free_once_its_holder_is_killed(segment, holder):
    holder.kill()
    holder.wait()
    assert segment.take(0)


def test_slots_are_apart(segment):
    for slot in range(SLOTS):
        with segment.bytes_of(slot) as memory:
            memory[:] = bytes([slot + 1]) * len(memory)
        segment.say(slot, 5 + slot, Content.FACTS, bytes([slot]) * 10_000)
    for slot in range(SLOTS):
        with segment.bytes_of(slot) as memory:
            assert bytes(memory) == bytes([slot + 1]) * HUGE
        assert segment.told(slot) == (Content.FACTS, bytes([slot]) * 10_000)
        assert segment.turn(slot) == 5 + slot


def test_whoever_has_the_descriptor_sees_the_same(segment):
    segment.say(1, 3, Content.MANIFEST, b"said")
    other = Segment(os.dup(segment.handle))
    assert other.told(1) == (Content.MANIFEST, b"said")
    other.close()


def test_more_than_the_room_holds_is_refused(segment):
    with pytest.raises(Invalid):
        segment.say(0, 1, Content.FACTS, bytes(segment.room + 1))


@given(st.binary(max_size=10_000))
def test_memory_that_is_no_segment_is_refused(content):
    handle = os.memfd_create("other")
    os.write(handle, content)
    with pytest.raises(DataLoss):
        Segment(handle)


@given(st.binary(min_size=48, max_size=48))
def test_noise_where_a_slot_is_described_is_no_checkpoint(words):
    segment = Segment.create(1, HUGE)
    os.pwrite(segment.handle, words, 24)
    for slot in range(SLOTS):
        content, told = segment.told(slot)
        assert content in {Content.NOTHING, Content.FACTS, Content.MANIFEST}
        assert len(told) <= segment.room
    segment.close()


def test_the_memory_has_no_name_that_could_be_left(segment):
    assert "(deleted)" in str(Path(f"/proc/self/fd/{segment.handle}").readlink())
