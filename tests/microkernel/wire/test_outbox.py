"""What waits to go out: short and long messages in turn, in order where it matters, and counted at every moment."""

from __future__ import annotations

import json
import random
from collections import defaultdict

import pytest

from microkernel.wire import binary
from microkernel.wire.binary import FRAME_BYTES, LONGEST_FRAME, Packed
from microkernel.wire.chunks import Assembly
from microkernel.wire.limits import Limits
from microkernel.wire.outbox import Control, Outbox
from microkernel.wire.state import Replay


class Box:
    """An outbox whose late messages go on as a session has them go on."""

    def __init__(self, **limits: int) -> None:
        self.now = 0.0
        self.outbox = Outbox(Limits(**limits), self._went_late, lambda: self.now)
        self.outbox.limit_long(2**24)
        self.went: list[Packed | None] = []

    def put(self, message: bytes | Packed, lane: int, now: float = 0.0) -> None:
        self.now = max(now, self.now)
        if not self.outbox.put_late(message, lane):
            self.outbox.put(message)

    def take(self, now: float = 0.0) -> bytes | None:
        frame = self.outbox.take()
        self.now = max(now, self.now)
        self.outbox.written()
        return b"".join(frame) if isinstance(frame, list) else frame

    def _went_late(self, message: Packed | None, followers: list[bytes | Packed], lane: int) -> None:
        self.went.append(message)
        for follower in followers:
            self.put(follower, lane)


def short(lane: int, number: int) -> bytes:
    return json.dumps([lane, number]).encode()


def long(lane: int, number: int, size: int) -> Packed:
    return binary.pack(json.dumps([lane, number]).encode(), [memoryview(bytes(size))])


def heard(frame: bytes, incoming: Assembly) -> list[tuple[int, ...]]:
    """The messages that are whole with `frame`."""
    if frame[:1] != b"\xa7":
        messages = json.loads(frame)
        return [tuple(each) for each in (messages if isinstance(messages[0], list) else [messages])]
    whole, _ = incoming.received(frame)
    if whole is None:
        return []
    text, _ = binary.unpack(whole, text=2**20, limit=2**24)
    return [tuple(json.loads(bytes(text)))]


@pytest.mark.parametrize("seed", range(40))
def test_each_lane_stays_in_order_and_the_counts_are_those_of_what_is_left(seed: int) -> None:
    chance = random.Random(seed)
    box, incoming = Box(buffer=2**30, messages=2**20), Assembly(text=2**20, limit=2**24)
    said: dict[int, list[int]] = defaultdict(list)
    dropped: set[tuple[int, int]] = set()
    got: dict[int, list[int]] = defaultdict(list)
    now = 0.0
    for number in range(300):
        lane = chance.randrange(6)
        step = chance.random()
        if step < 0.3:
            box.put(short(lane, number), lane, now)
            said[lane].append(number)
        elif step < 0.4:
            box.put(long(lane, number, chance.randrange(100, 4 * FRAME_BYTES)), lane, now)
            said[lane].append(number)
        elif step < 0.45 and lane in box.outbox.followers:
            message = box.outbox._late[lane]
            text, _ = binary.unpack(message.joined(), text=2**20, limit=2**24)
            box.outbox.drop(lane)
            dropped.add(tuple(json.loads(bytes(text))))
        else:
            now += chance.choice((0.0, 0.001, 0.1))
            if (frame := box.take(now)) is not None:
                assert len(frame) <= LONGEST_FRAME
                for where, what in heard(frame, incoming):
                    got[where].append(what)
    while (frame := box.take(now)) is not None:
        for where, what in heard(frame, incoming):
            got[where].append(what)
    assert {lane: numbers for lane, numbers in got.items() if numbers} == {
        lane: left
        for lane, numbers in said.items()
        if (left := [number for number in numbers if (lane, number) not in dropped])
    }
    assert (box.outbox.pending_bytes, box.outbox.pending_messages, len(box.outbox), len(incoming)) == (0, 0, 0, 0)
    assert not box.outbox.followers


def test_pending_counts_go_down_as_parts_go_out() -> None:
    box = Box()
    box.put(long(1, 1, 3 * FRAME_BYTES), 1)
    box.put(short(1, 2), 1)
    whole = box.outbox.pending_bytes
    assert box.outbox.pending_messages == 2
    frame = box.outbox.take()
    assert isinstance(frame, list)
    assert box.outbox.pending_bytes == whole  # what is taken is not written yet
    box.outbox.written()
    assert box.outbox.pending_bytes == whole - FRAME_BYTES


def test_one_frame_is_taken_at_a_time() -> None:
    box = Box()
    box.put(long(1, 1, 3 * FRAME_BYTES), 1)
    box.put(short(2, 1), 2)
    assert box.outbox.take() is not None
    assert box.outbox.take() is None
    box.outbox.written()
    assert box.outbox.take() is not None


def test_a_quick_link_gets_longer_parts_until_something_else_waits() -> None:
    box = Box()
    box.put(long(1, 1, 8 * LONGEST_FRAME), 1)
    assert len(box.take(0.0001) or b"") == FRAME_BYTES
    assert len(box.take(0.0002) or b"") == LONGEST_FRAME
    box.put(short(2, 1), 2)
    box.put(short(3, 1), 3)
    sizes = [len(box.take(0.0003) or b"") for _ in range(3)]
    assert sizes == [len(b"[[2, 1],[3, 1]]"), LONGEST_FRAME, LONGEST_FRAME]
    box.take(1.0)
    assert len(box.take(2.0) or b"") == FRAME_BYTES


def test_clearing_forgets_long_messages_too() -> None:
    box = Box()
    for lane in range(6):
        box.put(long(lane, 1, 3 * FRAME_BYTES), lane)
        box.put(short(lane, 2), lane)
    box.take()
    box.outbox.clear()
    assert (box.outbox.pending_bytes, box.outbox.pending_messages, len(box.outbox), box.take()) == (0, 0, 0, None)


def test_a_reader_for_which_producers_wait_has_five_seconds_from_each_frame_that_it_takes():
    box = Box(messages=8, buffer=8 * FRAME_BYTES)
    for _ in range(7):
        box.put(bytes(FRAME_BYTES), 0, now=0.0)
    assert box.outbox.cut_at == 5.0
    assert box.take(now=4.0)
    assert box.outbox.cut_at is None  # 75 %: they need not wait any more
    box.put(bytes(FRAME_BYTES), 0, now=6.0)
    assert box.outbox.cut_at == 11.0
    box.put(bytes(FRAME_BYTES), 0, now=7.0)
    assert box.take(now=8.0)
    assert box.outbox.cut_at == 13.0
    assert box.outbox.complaint(13.0) == "slow reader: 1.8 MiB pending, none taken for 5.0 s"


def test_a_frame_that_is_being_written_counts_as_pending_however_small_the_buffer_is():
    box = Box(messages=8)
    for _ in range(4):
        box.put(b"1", 0)
    assert box.outbox.take()
    for _ in range(3):
        box.put(b"1", 0, now=1.0)
    assert box.outbox.cut_at == 6.0


def test_what_goes_out_is_kept_by_frames_but_for_what_is_about_the_link() -> None:
    box = Box()
    replay = box.outbox.replay = Replay(2**20, 100)
    for message in (b"1", Control(b"2"), b"3", binary.pack(b"4", []), b"5"):
        box.outbox.put(message)
    assert replay.sent == 0
    assert [box.take() for _ in range(4)] == [b"[1,2,3]", b"".join(binary.pack(b"4", []).parts), b"5", None]
    assert [message if isinstance(message, bytes) else "packed" for message in replay.kept()] == [
        b"1",
        b"3",
        "packed",
        b"5",
    ]
    assert replay.sent == 4


@pytest.mark.parametrize("seed", range(20))
def test_there_is_room_just_while_less_than_half_waits_or_is_kept(seed: int) -> None:
    chance = random.Random(seed)
    box = Box(messages=64, buffer=2**16)
    replay = box.outbox.replay = Replay(2**16, 64)
    for _ in range(2000):
        if (step := chance.random()) < 0.6:
            box.outbox.put(bytes(chance.choice((1, 100, 3000))))
        elif step < 0.8:
            box.take()
        elif replay.count:
            replay.acknowledge(replay.acknowledged + chance.randint(1, replay.count))
        size, count = box.outbox.in_order
        used = replay.fill(size, count)
        if box.outbox.has_room:
            assert used < 0.5
        else:  # each message counts for its share of the bytes as well
            assert used >= 0.25
