"""Binary frames: what is packed comes back as views, and what lies about itself is refused with the numbers."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.wire import binary, codec, compression
from microkernel.wire.body import Bulk, HoldsBuffers
from microkernel.wire.codec import CloseCode, ProtocolError

LIMIT = 2**24
TEXT = 2**20
CALL = b'{"t":"call","id":1,"to":"kv.put","body":{"$buffer":0}}'


def unpack(frame: bytes | bytearray) -> tuple[bytes, list[bytes]]:
    json, buffers = binary.unpack(frame, text=TEXT, limit=LIMIT)
    return bytes(json), [bytes(buffer) for buffer in buffers]


def packed(json: bytes, *buffers: bytes, **options: bool) -> bytes:
    return binary.pack(json, [memoryview(buffer) for buffer in buffers], **options).joined()


def patched(frame: bytes | bytearray, form: str, place: int, value: int) -> bytearray:
    changed = bytearray(frame)
    struct.pack_into("<" + form, changed, place, value)
    return changed


@given(st.binary(max_size=100), st.lists(st.binary(max_size=100), max_size=5), st.booleans())
def test_a_message_comes_back_as_it_was(json: bytes, buffers: list[bytes], compressed: bool) -> None:
    if compressed:
        pytest.importorskip("zstandard")
    assert unpack(packed(json, *buffers, compressed=compressed)) == (json, buffers)


@given(st.binary(max_size=40), st.lists(st.binary(min_size=1, max_size=40), max_size=5))
def test_each_buffer_begins_at_a_multiple_of_16_from_the_frames_start(json: bytes, buffers: list[bytes]) -> None:
    frame = packed(json, *buffers)
    assert len(frame) % 16 == 0
    _, views = binary.unpack(frame, text=TEXT, limit=LIMIT)
    start = np.frombuffer(frame, np.uint8).__array_interface__["data"][0]
    places = [np.frombuffer(view, np.uint8).__array_interface__["data"][0] - start for view in views]
    assert [place % 16 for place in places] == [0] * len(buffers)


def test_buffers_are_read_only_views_of_the_frame_and_no_copies() -> None:
    frame = bytearray(packed(CALL, b"abcd"))
    _, (view,) = binary.unpack(frame, text=TEXT, limit=LIMIT)
    frame[-16] = ord("x")
    assert bytes(view) == b"xbcd"
    assert view.readonly


def test_the_layout_is_the_one_that_is_written_down() -> None:
    frame = packed(b'{"t":"x"}', b"\x01\x02\x03")
    assert frame == (
        b"\xa7\x01" b"\x00\x00" b"\x09\x00\x00\x00" b"\x01\x00" b"\x00\x00" b"\x00\x00\x00\x00"  # the header
        b"\x03\x00\x00\x00\x00\x00\x00\x00"  # the length of buffer 0
        b'{"t":"x"}' + bytes(15) +  # the JSON, up to byte 48
        b"\x01\x02\x03" + bytes(13)
    )  # fmt: skip


FRAME = bytes(packed(CALL, b"abc", bytes(100)))


@pytest.mark.parametrize(
    ("frame", "code", "reason"),
    [
        (b"", CloseCode.PROTOCOL, "a binary frame has 0 bytes, fewer than the 16 of its header"),
        (FRAME[:15], CloseCode.PROTOCOL, "a binary frame has 15 bytes, fewer than the 16 of its header"),
        (patched(FRAME, "B", 0, 0x7B), CloseCode.PROTOCOL, "a binary frame begins with 0x7B, not with 0xA7"),
        (patched(FRAME, "B", 1, 2), CloseCode.VERSION, "version 2 of binary frames is not spoken here, only 1"),
        (patched(FRAME, "H", 2, 4), CloseCode.BINARY, "checksums are not taken here: send without CRC32C"),
        (patched(FRAME, "H", 2, 64), CloseCode.PROTOCOL, "unknown flags in a binary frame: 0x0040"),
        (patched(FRAME, "I", 12, 1), CloseCode.PROTOCOL, "without CRC32C has the checksum 0x00000001"),
        (patched(FRAME, "H", 10, 5), CloseCode.PROTOCOL, "stream 5 of a binary frame: at most 4 are under way"),
        (patched(FRAME, "H", 8, 1025), CloseCode.PROTOCOL, "a message has 1025 buffers, more than 1024"),
        (patched(FRAME, "H", 8, 1000), CloseCode.PROTOCOL, "of 224 bytes has no room for 1000 lengths"),
        (patched(FRAME, "I", 4, 2**21), CloseCode.TOO_BIG, "the JSON of a message is too big: 2.0 MiB, at most 1.0"),
        (patched(FRAME, "I", 4, 200), CloseCode.PROTOCOL, "has 224 bytes, and 368 by its lengths"),
        (patched(FRAME, "Q", 16, 2**63), CloseCode.TOO_BIG, "too big: 8796093022208.0 MiB, at most 16.0 MiB"),
        (patched(FRAME, "Q", 16, 17), CloseCode.PROTOCOL, "has 224 bytes, and 240 by its lengths"),
        (patched(FRAME, "H", 8, 1), CloseCode.PROTOCOL, "has 224 bytes, and 96 by its lengths"),
        (FRAME + bytes(16), CloseCode.PROTOCOL, "has 240 bytes, and 224 by its lengths"),
        (FRAME[:-16], CloseCode.PROTOCOL, "has 208 bytes, and 224 by its lengths"),
        (patched(FRAME, "B", len(FRAME) - 1, 1), CloseCode.PROTOCOL, "the padding at byte 212 of a binary frame"),
        (patched(FRAME, "B", 95, 1), CloseCode.PROTOCOL, "the padding at byte 86 of a binary frame is not zero"),
    ],
)
def test_a_frame_that_lies_is_refused_with_the_numbers(frame: bytes, code: CloseCode, reason: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        unpack(frame)
    assert caught.value.code == code
    assert reason in caught.value.reason


def test_a_message_has_its_buffers_in_its_body() -> None:
    message: Any = binary.message_of(FRAME, text=TEXT, limit=LIMIT)
    assert isinstance(message, codec.Call)
    body: Any = message.body
    assert isinstance(body, Bulk)
    assert (message.to, bytes(body.json), len(body.buffers)) == ("kv.put", b'{"$buffer":0}', 2)


def test_a_message_without_buffers_is_one_as_in_text() -> None:
    assert binary.message_of(packed(CALL), text=TEXT, limit=LIMIT) == codec.decode(CALL.decode())[0]


def test_a_message_of_a_later_version_is_unknown_and_no_error() -> None:
    message = binary.message_of(packed(b'{"t":"teleport","id":3}', b"abc"), text=TEXT, limit=LIMIT)
    assert message == codec.Unknown("teleport", 3)


@pytest.mark.parametrize(
    ("json", "reason"),
    [
        (b'{"t":"ping"}', "a 'ping' message holds no buffers"),
        (b'[{"t":"ping"}]', "the JSON of a binary frame is no message: Expected `object`, got `array`"),
        (b'{"t":"call","id":-1,"to":"a"}', "the JSON of a binary frame is no message: Expected `int` >= 0"),
        (b'{"t":"call"', "the JSON of a binary frame is no message"),
        (b"\xff", "the JSON of a binary frame is no message"),
        (b'{"t":"\xff"}', "the JSON of a binary frame is no message"),
        (b"[" * 100_000, "the JSON of a binary frame is no message"),
    ],
)
def test_json_that_is_no_message_is_refused(json: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        binary.message_of(packed(json, b"abc"), text=TEXT, limit=LIMIT)
    assert reason in caught.value.reason


def test_a_message_with_a_bulk_is_packed_as_its_json_and_its_buffers() -> None:
    body: Any = Bulk(msgspec.Raw(b'{"$buffer":0}'), (memoryview(b"abc"),))
    with pytest.raises(HoldsBuffers):
        codec.encode(codec.Result(1, body))
    json, buffers = unpack(binary.packed(codec.Result(1, body)).joined())
    assert (json, buffers) == (b'{"t":"result","id":1,"body":{"$buffer":0}}', [b"abc"])


class TestCompression:
    """Zstandard, which both ends may have."""

    @pytest.fixture(autouse=True)
    def _needs_zstandard(self) -> None:
        pytest.importorskip("zstandard")

    def test_a_compressed_message_is_shorter_and_aligned_all_the_same(self) -> None:
        frame = packed(CALL, bytes(10_000), compressed=True)
        assert len(frame) < 200
        assert unpack(frame) == (CALL, [bytes(10_000)])

    def test_a_bomb_makes_no_more_than_its_frame_says_and_the_limit_allows(self) -> None:
        bomb = packed(CALL, bytes(2**20), compressed=True)
        with pytest.raises(ProtocolError, match="holds 1048632 bytes, and 168 by its lengths"):
            unpack(patched(bomb, "Q", 16, 100))
        with pytest.raises(ProtocolError, match="too big: 1.0 MiB, at most 0.5 MiB") as caught:
            binary.unpack(bomb, text=TEXT, limit=2**19)
        assert caught.value.code == CloseCode.TOO_BIG

    def test_a_bomb_that_hides_its_size_is_stopped(self) -> None:
        import zstandard

        stream = zstandard.ZstdCompressor().compressobj()
        hidden = stream.compress(bytes(2**20)) + stream.flush()
        frame = bytes(binary.frame_header(binary.ZSTD, 16, 0)) + hidden
        with pytest.raises(ProtocolError, match="a compressed message"):
            unpack(frame)

    @pytest.mark.parametrize("rest", [b"", b"nonsense", b"\x28\xb5\x2f\xfd"])
    def test_what_is_not_compressed_is_refused(self, rest: bytes) -> None:
        with pytest.raises(ProtocolError, match="a compressed message"):
            unpack(binary.frame_header(binary.ZSTD, 16, 0) + rest)

    def test_without_the_package_a_compressed_frame_is_refused_with_a_reason(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        frame = packed(CALL, bytes(100), compressed=True)
        monkeypatch.setattr(compression, "zstandard", None)
        with pytest.raises(ProtocolError, match="send without ZSTD") as caught:
            unpack(frame)
        assert caught.value.code == CloseCode.BINARY
