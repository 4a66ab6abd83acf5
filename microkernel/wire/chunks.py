"""Long messages in parts, so that a cancel, a ping or another call never waits long behind one (sans-IO).

A message of more than 256 KiB may be cut: the first frame is its beginning, with MORE set and the number of a
stream, 1 to 4; each later frame is a header with PART, that stream, and the bytes that follow; the last one has no
MORE. All but the last have 256 KiB at least, so nobody can be kept busy with crumbs, and no frame has more than 1 MiB
and a bit: the sender makes them as long as go out in 2 ms. ABORT with the stream's number and nothing else drops
what has come of it. The messages that are under way in one direction take together no more than one may: that
bounds what the receiver holds.
"""

from __future__ import annotations

from collections import deque

from microkernel.wire.binary import (
    ABORT,
    FRAME_BYTES,
    HEADER_BYTES,
    LONGEST_FRAME,
    MORE,
    MOST_STREAMS,
    PART,
    ZSTD,
    Header,
    Packed,
    frame_header,
    header_of,
    size_of,
)
from microkernel.wire.codec import CloseCode, ProtocolError, mebibytes

__all__ = ["Assembly", "LongMessages", "frame_bytes"]

MOMENT = 0.002  # seconds that a part may take


def frame_bytes(size: int, seconds: float) -> int:
    """How long the next frame of a long message is to be, when the last one had `size` bytes and took `seconds`."""
    longest = LONGEST_FRAME if seconds <= 0 else min(LONGEST_FRAME, int(size * MOMENT / seconds))
    return max(FRAME_BYTES, longest // 16 * 16)


class LongMessages:
    """Long messages on their way out: a frame of each in turn, oldest first. A lane has one at a time."""

    def __init__(self) -> None:
        self.limit = 0  # bytes under way together; what the other end has announced
        self._waiting: deque[tuple[int, Packed]] = deque()
        self._under_way: deque[_Cut] = deque()
        self._free = list(range(MOST_STREAMS, 0, -1))
        self._bytes_under_way = 0
        self.bytes_left = 0  # of all that is here, whether begun or not

    def __len__(self) -> int:
        return len(self._waiting) + len(self._under_way)

    def add(self, message: Packed, lane: int) -> None:
        """Send `message` when its turn comes; it has more than `FRAME_BYTES`."""
        self._waiting.append((lane, message))
        self.bytes_left += message.size

    def next_frame(self, longest: int = FRAME_BYTES) -> tuple[list[bytes | memoryview], tuple[int, Packed] | None]:
        """The next frame of at most `longest` bytes, in pieces, and the lane and the message that end with it.

        There is at least one message.
        """
        while self._waiting and self._free and self._has_room(self._waiting[0][1]):
            lane, message = self._waiting.popleft()
            self._under_way.append(_Cut(message, self._free.pop(), lane))
            self._bytes_under_way += message.size
        cut = self._under_way.popleft()
        before = cut.left
        frame = cut.next_frame(longest)
        self.bytes_left -= before - cut.left
        if cut.left:
            self._under_way.append(cut)
        else:
            self._end(cut)
        return frame, None if cut.left else (cut.lane, cut.message)

    def drop(self, lane: int) -> bytes:
        """Forget the message of `lane`; the frame that tells the other end, empty where it need not be told."""
        for entry in self._waiting:
            if entry[0] == lane:
                self._waiting.remove(entry)
                self.bytes_left -= entry[1].size
                return b""
        for cut in self._under_way:
            if cut.lane == lane:
                self._under_way.remove(cut)
                self.bytes_left -= cut.left
                self._end(cut)
                return frame_header(ABORT, 0, 0, cut.stream) if cut.left < cut.size else b""
        return b""

    def clear(self) -> None:
        """Forget everything: the link is gone."""
        self._waiting.clear()
        self._under_way.clear()
        self._free = list(range(MOST_STREAMS, 0, -1))
        self._bytes_under_way = self.bytes_left = 0

    def _has_room(self, message: Packed) -> bool:
        return not self._under_way or self._bytes_under_way + message.size <= self.limit

    def _end(self, cut: _Cut) -> None:
        self._free.append(cut.stream)
        self._bytes_under_way -= cut.size


class _Cut:
    """One long message, cut from the front."""

    __slots__ = ("_parts", "_place", "lane", "left", "message", "size", "stream")

    def __init__(self, message: Packed, stream: int, lane: int) -> None:
        self.message = message
        self.size = self.left = message.size
        self.stream = stream
        self.lane = lane
        self._parts = deque(memoryview(part) for part in message.parts)
        self._place = 0  # in the first of the parts that are left

    def next_frame(self, longest: int) -> list[bytes | memoryview]:
        payload = longest - HEADER_BYTES
        if self.left == self.size:
            if self.size <= longest:
                self.left = 0
                return list(self.message.parts)
            start = self._cut(HEADER_BYTES)
            header = header_of(b"".join(start))
            head = frame_header(header.flags | MORE, header.json_bytes, header.buffers, self.stream)
        else:
            head = frame_header(PART | (MORE if self.left > payload else 0), 0, 0, self.stream)
        return [head, *self._cut(payload)]

    def _cut(self, size: int) -> list[memoryview]:
        """Views of the next `size` bytes, or of all that is left."""
        pieces: list[memoryview] = []
        while size and self._parts:
            part = self._parts[0]
            piece = part[self._place : self._place + size]
            size -= len(piece)
            self.left -= len(piece)
            self._place += len(piece)
            pieces.append(piece)
            if self._place == len(part):
                self._parts.popleft()
                self._place = 0
        return pieces


class Assembly:
    """Long messages on their way in."""

    def __init__(self, *, text: int, limit: int) -> None:
        """`text` is how long the JSON of a message may be, `limit` all messages together."""
        self._text = text
        self._limit = limit
        self._under_way: dict[int, _Incoming] = {}
        self._promised = 0  # bytes of all messages under way, by their lengths

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def held(self) -> int:
        """Bytes that have come and are no whole message yet."""
        return sum(len(incoming.frame) for incoming in self._under_way.values())

    def received(self, frame: bytes | bytearray) -> tuple[bytes | bytearray | None, bool]:
        """The message that is whole with this frame, None if none; and whether a message began with it.

        Raises `ProtocolError`.
        """
        if len(frame) > LONGEST_FRAME:
            reason = f"a binary frame has {len(frame)} bytes, at most {LONGEST_FRAME}: send it in parts"
            raise ProtocolError(reason, CloseCode.TOO_BIG)
        header = header_of(frame)
        if not header.stream:
            if header.flags & ~ZSTD:
                raise ProtocolError(f"flags 0x{header.flags:04X} in a binary frame that names no stream")
            return frame, True
        incoming = self._under_way.get(header.stream)
        if header.flags | ZSTD == MORE | ZSTD:
            if incoming is not None:
                raise ProtocolError(f"stream {header.stream} of long messages is in use")
            self._begin(frame, header)
            return None, True
        if header.flags not in {PART, PART | MORE, ABORT}:
            raise ProtocolError(f"flags 0x{header.flags:04X} in a part of a long message")
        if incoming is None:
            raise ProtocolError(f"a part of stream {header.stream} without a beginning")
        if header.json_bytes or header.buffers:
            raise ProtocolError("a part of a long message has a JSON of its own")
        if header.flags == ABORT:
            if len(frame) != HEADER_BYTES:
                raise ProtocolError(f"the abort of a long message has {len(frame)} bytes, not {HEADER_BYTES}")
            self._end(header.stream, incoming)
            return None, False
        if not incoming.add(frame, has_more=bool(header.flags & MORE)):
            return None, False
        self._end(header.stream, incoming)
        return incoming.frame, False

    def clear(self) -> None:
        """Forget what has come: the link is gone."""
        self._under_way.clear()
        self._promised = 0

    def _begin(self, frame: bytes | bytearray, header: Header) -> None:
        if len(frame) < FRAME_BYTES:
            raise _wrong_length(frame)
        size = size_of(frame, header, text=self._text, limit=self._limit)
        if size <= len(frame):
            raise ProtocolError(f"a message of {size} bytes comes in parts, and {len(frame)} are in the first")
        if self._promised + size > self._limit:
            sizes = f"{mebibytes(self._promised + size)}, at most {mebibytes(self._limit)}"
            raise ProtocolError(f"the long messages under way are too big together: {sizes}", CloseCode.TOO_BIG)
        self._promised += size
        self._under_way[header.stream] = _Incoming(frame, header, size)

    def _end(self, stream: int, incoming: _Incoming) -> None:
        del self._under_way[stream]
        self._promised -= incoming.size


def _wrong_length(frame: bytes | bytearray) -> ProtocolError:
    return ProtocolError(
        f"a part of a long message has {len(frame)} bytes; all but the last have {FRAME_BYTES} at least"
    )


class _Incoming:
    """What has come of one long message."""

    __slots__ = ("_compressed", "_left", "frame", "size")

    def __init__(self, frame: bytes | bytearray, header: Header, size: int) -> None:
        self.size = size
        self._left = size - len(frame)
        self._compressed = bool(header.flags & ZSTD)
        # The header of the whole: as if it had come in one frame.
        self.frame = bytearray(frame_header(header.flags & ~MORE, header.json_bytes, header.buffers))
        self.frame += memoryview(frame)[HEADER_BYTES:]

    def add(self, frame: bytes | bytearray, *, has_more: bool) -> bool:
        """One more frame; whether it was the last. Raises `ProtocolError`."""
        piece = memoryview(frame)[HEADER_BYTES:]
        if has_more and len(frame) < FRAME_BYTES:
            raise _wrong_length(frame)
        left = self._left - len(piece)
        # How much a compressed message takes is only known at its end; it is no longer than what it stands for.
        is_right = len(piece) > 0 and (left >= 0 if self._compressed else (left > 0) == has_more and left >= 0)
        if not is_right:
            what = "more are announced" if has_more else "it is the last"
            raise ProtocolError(f"a part of {len(piece)} bytes where {self._left} are left, and {what}")
        self._left = left
        # The one copy on the way in, while the piece is still in the processor's cache: joining 1 MiB at the end takes
        # 30 times as long, most of it for fresh pages. It never holds more than has come, and an eighth.
        self.frame += piece
        return not has_more
