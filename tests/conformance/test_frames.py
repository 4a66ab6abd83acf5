"""The tests' own reader of frames: a reader that lets something pass would let the ends under test pass too."""

from __future__ import annotations

import pytest
from conformance.frames import Breach, Frame, FrameReader, Opcode, close_frame


class Sent:
    """Octets that have come, and then the end."""

    def __init__(self, octets: bytes) -> None:
        self._left = octets

    async def readexactly(self, size: int) -> bytes:
        if len(self._left) < size:
            raise EOFError
        octets, self._left = self._left[:size], self._left[size:]
        return octets


async def read_all(*octets: bytes, masked: bool = False) -> list[Frame]:
    reader = FrameReader(Sent(b"".join(octets)), masked=masked)
    frames = []
    while (frame := await reader.read()) is not None:
        frames.append(frame)
    return frames


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
async def test_what_is_written_is_read_again(size, masked):
    frame = Frame(Opcode.BINARY, bytes(range(256)) * (size // 256) + bytes(size % 256))
    assert await read_all(frame.encoded(masked=masked), masked=masked) == [frame]


async def test_the_examples_of_the_rfc_are_read():
    """Section 5.7."""
    hello = Frame(Opcode.TEXT, b"Hello")
    assert await read_all(bytes.fromhex("810548656c6c6f")) == [hello]
    assert await read_all(bytes.fromhex("818537fa213d7f9f4d5158"), masked=True) == [hello]
    assert await read_all(bytes.fromhex("010348656c"), bytes.fromhex("80026c6f")) == [hello]
    assert hello.encoded(masked=True) == bytes.fromhex("818537fa213d7f9f4d5158")


async def test_a_control_frame_between_two_fragments_comes_first():
    octets = [Frame(Opcode.TEXT, b"a", fin=False), Frame(Opcode.PING), Frame(Opcode.CONTINUATION, b"b")]
    assert await read_all(*[each.encoded(masked=False) for each in octets]) == [
        Frame(Opcode.PING),
        Frame(Opcode.TEXT, b"ab"),
    ]


@pytest.mark.parametrize(
    "frames",
    [
        [Frame(Opcode.TEXT, rsv=1)],
        [Frame(3)],
        [Frame(11)],
        [Frame(Opcode.CONTINUATION)],
        [Frame(Opcode.TEXT, b"a", fin=False), Frame(Opcode.TEXT, b"b")],
        [Frame(Opcode.PING, fin=False)],
        [Frame(Opcode.PONG, bytes(126))],
        [Frame(Opcode.TEXT, b"\xff")],
        [Frame(Opcode.CLOSE, b"\x03")],
        *([close_frame(code)] for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)),
        [close_frame(1000, b"\xff")],
        [close_frame(1000), Frame(Opcode.PING)],
    ],
)
async def test_what_the_rfc_forbids_is_a_breach(frames):
    with pytest.raises(Breach):
        await read_all(*[frame.encoded(masked=False) for frame in frames])


@pytest.mark.parametrize("octets", ["827e00050000000000", "827f0000000000000005" + "00" * 5], ids=["2", "8"])
async def test_a_length_in_more_octets_than_it_needs_is_a_breach(octets):
    with pytest.raises(Breach):
        await read_all(bytes.fromhex(octets))


@pytest.mark.parametrize("masked", [True, False])
async def test_a_mask_where_none_belongs_and_none_where_one_does_is_a_breach(masked):
    with pytest.raises(Breach):
        await read_all(Frame(Opcode.TEXT).encoded(masked=not masked), masked=masked)
