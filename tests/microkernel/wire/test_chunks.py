"""Long messages in parts: whole again whatever comes between, bounded, and refused when they lie."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.wire import binary
from microkernel.wire.binary import ABORT, FRAME_BYTES, LONGEST_FRAME, MORE, PART, Packed, frame_header
from microkernel.wire.chunks import Assembly, LongMessages, frame_bytes
from microkernel.wire.codec import CloseCode, ProtocolError

LIMIT = 2**22
KIB = 1024


def message(size: int, seed: int = 0) -> Packed:
    return binary.pack(b'{"t":"x"}', [memoryview(random.Random(seed).randbytes(size))])


def sending(*messages: Packed, limit: int = LIMIT) -> LongMessages:
    long = LongMessages()
    long.limit = limit
    for lane, each in enumerate(messages):
        long.add(each, lane)
    return long


def next_frame(long: LongMessages, longest: int = FRAME_BYTES) -> bytes:
    return b"".join(long.next_frame(longest)[0])


def assembly() -> Assembly:
    return Assembly(text=2**20, limit=LIMIT)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(FRAME_BYTES, 6 * FRAME_BYTES), min_size=1, max_size=6),
    st.lists(st.sampled_from([FRAME_BYTES, FRAME_BYTES + 16 * 999, LONGEST_FRAME]), min_size=1, max_size=8),
)
def test_all_that_is_sent_in_parts_is_whole_again(sizes: list[int], lengths: list[int]) -> None:
    messages = [message(size, seed) for seed, size in enumerate(sizes)]
    long, incoming = sending(*messages), assembly()
    whole = {}
    turn = 0
    while len(long):
        pieces, ended = long.next_frame(lengths[turn % len(lengths)])
        turn += 1
        frame = b"".join(pieces)
        assert len(frame) <= LONGEST_FRAME
        done, _ = incoming.received(frame)
        assert (done is None) == (ended is None)
        if done is not None and ended is not None:
            whole[ended[0]] = bytes(done)
        assert incoming.held <= LIMIT + LIMIT // 8
    assert whole == {lane: each.joined() for lane, each in enumerate(messages)}
    assert (long.bytes_left, len(incoming), incoming.held) == (0, 0, 0)


def test_messages_take_turns_so_that_none_waits_for_the_end_of_another() -> None:
    long = sending(message(4 * FRAME_BYTES), message(FRAME_BYTES, 1))
    ends = []
    while len(long):
        _, ended = long.next_frame()
        ends.append(None if ended is None else ended[0])
    assert ends == [None, None, None, 1, None, None, 0]


def test_at_most_four_are_under_way_and_together_no_more_than_one_may_be() -> None:
    incoming = assembly()
    for limit, most in ((LIMIT, 4), (5 * FRAME_BYTES, 2)):
        long = sending(*(message(2 * FRAME_BYTES, seed) for seed in range(8)), limit=limit)
        while len(long):
            incoming.received(next_frame(long))
            assert len(incoming) <= most


def test_a_part_is_as_long_as_goes_out_in_a_moment() -> None:
    assert frame_bytes(FRAME_BYTES, 0.0) == LONGEST_FRAME
    assert frame_bytes(FRAME_BYTES, 1e-6) == LONGEST_FRAME
    assert frame_bytes(FRAME_BYTES, 0.001) == 2 * FRAME_BYTES
    assert frame_bytes(LONGEST_FRAME, 10.0) == FRAME_BYTES
    assert frame_bytes(1_000_000, 0.003) % 16 == 0


def test_a_message_that_goes_out_in_a_moment_goes_whole() -> None:
    each = message(2**20)
    frame = next_frame(sending(each), LONGEST_FRAME)
    assert frame == each.joined()
    assert assembly().received(frame) == (frame, True)


def test_dropping_one_that_is_under_way_tells_the_other_end_and_frees_its_stream() -> None:
    long, incoming = sending(message(3 * FRAME_BYTES)), assembly()
    incoming.received(next_frame(long))
    abort = long.drop(0)
    assert (len(long), long.bytes_left) == (0, 0)
    assert incoming.received(abort) == (None, False)
    assert (len(incoming), incoming.held) == (0, 0)
    long.add(message(2 * FRAME_BYTES, 1), 1)
    assert incoming.received(next_frame(long)) == (None, True)


def test_dropping_one_that_has_not_begun_tells_nobody() -> None:
    long = sending(message(2 * FRAME_BYTES), message(2 * FRAME_BYTES, 1), message(3 * FRAME_BYTES, 2))
    next_frame(long)
    assert long.drop(1) == b""
    assert long.drop(2) == b""
    assert long.drop(7) == b""
    assert len(long) == 1


def first(size: int = 3 * FRAME_BYTES, stream: int = 1) -> bytes:
    frame = bytearray(message(size).joined()[:FRAME_BYTES])
    frame[2:4] = MORE.to_bytes(2, "little")
    frame[10] = stream
    return bytes(frame)


def part(size: int = FRAME_BYTES - 16, flags: int = PART | MORE, stream: int = 1, **json: int) -> bytes:
    return frame_header(flags, json.get("json", 0), json.get("buffers", 0), stream) + bytes(size)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([bytes(LONGEST_FRAME + 1)], "has 1114113 bytes, at most 1114112: send it in parts"),
        ([part()], "a part of stream 1 without a beginning"),
        ([part(0, ABORT)], "a part of stream 1 without a beginning"),
        ([first(), first()], "stream 1 of long messages is in use"),
        ([first(), part(stream=2)], "a part of stream 2 without a beginning"),
        ([first(), part(100)], "a part of a long message has 116 bytes; all but the last have 262144 at least"),
        ([first(), part(100, PART)], "a part of 100 bytes where 524336 are left, and it is the last"),
        ([first(), part(0, PART)], "a part of 0 bytes where 524336 are left, and it is the last"),
        ([first(), part(600 * KIB)], "a part of 614400 bytes where 524336 are left, and more are announced"),
        ([first(), part(600 * KIB, PART)], "a part of 614400 bytes where 524336 are left, and it is the last"),
        ([first(), part(524336)], "a part of 524336 bytes where 524336 are left, and more are announced"),
        ([first(), part(json=3)], "a part of a long message has a JSON of its own"),
        ([first(), part(buffers=3)], "a part of a long message has a JSON of its own"),
        ([first(), part(1, ABORT)], "the abort of a long message has 17 bytes, not 16"),
        ([first(), part(0, ABORT | PART)], "flags 0x0018 in a part of a long message"),
        ([first(), part(0, 0)], "flags 0x0000 in a part of a long message"),
        ([first(stream=0)], "flags 0x0001 in a binary frame that names no stream"),
        ([first()[:1000]], "a part of a long message has 1000 bytes; all but the last have 262144 at least"),
        (
            [first(100 * KIB) + bytes(2 * FRAME_BYTES)],
            "102448 bytes comes in parts, and 626736 are in the first",
        ),
        ([first(LIMIT)], "a message with buffers is too big: 4.0 MiB, at most 4.0 MiB"),
        ([first(LIMIT // 2), first(LIMIT // 2 + 99, 2)], "the long messages under way are too big together: 4.0 MiB"),
    ],
)
def test_parts_that_lie_are_refused(frames: list[bytes], reason: str) -> None:
    incoming = assembly()
    for frame in frames[:-1]:
        assert incoming.received(frame)[0] is None
    with pytest.raises(ProtocolError) as caught:
        incoming.received(frames[-1])
    assert reason in caught.value.reason
    assert caught.value.code in {CloseCode.PROTOCOL, CloseCode.TOO_BIG}


def test_a_compressed_message_comes_in_parts_too() -> None:
    pytest.importorskip("zstandard")
    noise = random.Random(1).randbytes(2 * FRAME_BYTES)
    each = binary.pack(b'{"t":"x"}', [memoryview(noise + bytes(FRAME_BYTES))], compressed=True)
    assert each.is_long
    long, incoming, whole = sending(each), assembly(), None
    while len(long):
        whole, _ = incoming.received(next_frame(long))
    assert whole is not None
    _, (buffer,) = binary.unpack(whole, text=2**20, limit=LIMIT)
    assert bytes(buffer) == noise + bytes(FRAME_BYTES)
