"""Binary frames of `mk.v1`: one message, a JSON object, with buffers beside it. Hot: once a long message.

A frame is a header of 16 bytes, the buffers' lengths, the JSON, and the buffers, the last two padded with zeros to 16
bytes counted from the frame's start: what is decoded are views into the frame, aligned for every dtype. All
numbers are little endian:

    u8 magic 0xA7, u8 version, u16 flags, u32 JSON bytes, u16 buffers, u16 stream, u32 checksum, u64 length …

Every bound is checked before anything is made of it, and a decoded message takes no memory beyond its frame. How a
long message is cut is in `chunks`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from microkernel.wire import codec
from microkernel.wire.body import Bulk, encode_inline
from microkernel.wire.codec import MOST_BUFFERS, CloseCode, Frame, Known, ProtocolError, Unknown, mebibytes
from microkernel.wire.compression import compress, decompress

__all__ = [
    "ABORT", "CRC32C", "FRAME_BYTES", "HEADER_BYTES", "LONGEST_FRAME", "MAGIC", "MORE", "MOST_STREAMS", "PART",
    "VERSION", "ZSTD", "Header", "Packed", "frame_header", "header_of", "message_of", "pack", "packed", "size_of",
    "unpack",
]  # fmt: skip

MAGIC = 0xA7  # no UTF-8 text begins with it
VERSION = 1
MORE, ZSTD, CRC32C, PART, ABORT = 1, 2, 4, 8, 16  # flags

ALIGNMENT = 16  # the widest element there is
HEADER_BYTES = 16
FRAME_BYTES = 256 * 1024  # what a part has at least: what a ping may have to wait for on a slow link
LONGEST_FRAME = 1024 * 1024 + 64 * 1024  # a tensor of 1 MiB and its JSON, where that takes no longer than a moment
MOST_STREAMS = 4  # long messages under way at a time, in each direction

_header = struct.Struct("<BBHIHHI")
_ZEROS = bytes(ALIGNMENT)


class Header(NamedTuple):
    """The first 16 bytes of a frame; `stream` is 0 for a message in one frame, 1 to 4 for a part of a longer one."""

    flags: int
    json_bytes: int
    buffers: int
    stream: int


class Packed:
    """One message as it will be sent, in parts that lie where they lie: nothing is copied before it goes out."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: tuple[bytes | memoryview, ...], size: int) -> None:
        self.parts = parts
        self.size = size

    def __len__(self) -> int:
        return self.size

    @property
    def is_long(self) -> bool:
        """Whether it goes in parts when the link is slow."""
        return self.size > FRAME_BYTES

    def joined(self) -> bytes:
        """All of it as one frame."""
        return b"".join(self.parts)


def packed(message: Frame) -> Packed:
    """`message`, whose body is a `Bulk`, ready to be sent."""
    body: Bulk = message.body  # type: ignore[attr-defined] # what has a Bulk has a body
    return pack(encode_inline(message), body.buffers)


def message_of(frame: bytes | bytearray, *, text: int, limit: int) -> Known | Unknown:
    """The message of a whole frame; its body is a `Bulk` of views into the frame. Raises `ProtocolError`."""
    json, buffers = unpack(frame, text=text, limit=limit)
    message = codec.decode_one(bytes(json))
    if not buffers or isinstance(message, Unknown):
        return message
    body = getattr(message, "body", None)
    if body is None:
        raise ProtocolError(f"a '{type(message).__struct_config__.tag}' message holds no buffers")
    whole: Known = msgspec.structs.replace(message, body=Bulk(body, tuple(buffers)))
    return whole


def pack(json: bytes, buffers: Sequence[memoryview], *, compressed: bool = False) -> Packed:
    """The frame of one message. The buffers are flat and do not change from now on; there are `MOST_BUFFERS` at most.

    With `compressed`, raises `Unimplemented` where there is no `zstandard`.
    """
    lengths = b"".join([len(buffer).to_bytes(8, "little") for buffer in buffers])
    start = HEADER_BYTES + len(lengths)
    parts: list[bytes | memoryview] = [json + bytes(-(start + len(json)) % ALIGNMENT)]
    for buffer in buffers:
        parts.append(buffer)
        if padding := -len(buffer) % ALIGNMENT:
            parts.append(_ZEROS[:padding])
    if compressed:
        parts = [compress(b"".join(parts))]
    head = frame_header(ZSTD if compressed else 0, len(json), len(buffers)) + lengths
    return Packed((head, *parts), len(head) + sum(map(len, parts)))


def unpack(frame: bytes | bytearray, *, text: int, limit: int) -> tuple[memoryview, list[memoryview]]:
    """The JSON and the buffers of a whole message, as read-only views. Raises `ProtocolError`, naming the numbers.

    `text` is how long the JSON may be, `limit` the whole message, uncompressed.
    """
    header = header_of(frame)
    size = size_of(frame, header, text=text, limit=limit)
    start = HEADER_BYTES + 8 * header.buffers
    lengths = _lengths(frame, header.buffers)
    if header.flags & ZSTD:
        # What comes before it is put back in front: the buffers stay aligned.
        frame = decompress(frame, start, size)
    elif size != len(frame):
        raise ProtocolError(f"a message with buffers has {len(frame)} bytes, and {size} by its lengths")
    view = memoryview(frame).toreadonly()
    end = start + header.json_bytes
    json = view[start:end]
    buffers: list[memoryview] = []
    start = _skip_padding(frame, end)
    for length in lengths:
        end = start + length
        buffers.append(view[start:end])
        start = _skip_padding(frame, end)
    return json, buffers


def frame_header(flags: int, json_bytes: int, buffers: int, stream: int = 0) -> bytes:
    """The first 16 bytes of a frame."""
    return _header.pack(MAGIC, VERSION, flags, json_bytes, buffers, stream, 0)


def header_of(frame: bytes | bytearray) -> Header:
    """The header of a frame that has come; raises `ProtocolError` for what no header says."""
    if len(frame) < HEADER_BYTES:
        raise ProtocolError(f"a binary frame has {len(frame)} bytes, fewer than the {HEADER_BYTES} of its header")
    magic, version, flags, json_bytes, buffers, stream, checksum = _header.unpack_from(frame)
    if magic != MAGIC:
        raise ProtocolError(f"a binary frame begins with 0x{magic:02X}, not with 0x{MAGIC:02X}")
    if version != VERSION:
        raise ProtocolError(f"version {version} of binary frames is not spoken here, only {VERSION}", CloseCode.VERSION)
    if flags & CRC32C:
        raise ProtocolError("checksums are not taken here: send without CRC32C", CloseCode.BINARY)
    if flags & ~(MORE | ZSTD | PART | ABORT):
        raise ProtocolError(f"unknown flags in a binary frame: 0x{flags:04X}")
    if checksum:
        raise ProtocolError(f"a binary frame without CRC32C has the checksum 0x{checksum:08X}")
    if stream > MOST_STREAMS:
        raise ProtocolError(f"stream {stream} of a binary frame: at most {MOST_STREAMS} are under way")
    return Header(flags, json_bytes, buffers, stream)


def size_of(frame: bytes | bytearray, header: Header, *, text: int, limit: int) -> int:
    """Bytes of the whole message that begins in `frame`, uncompressed; raises `ProtocolError` past `limit`."""
    if header.buffers > MOST_BUFFERS:
        raise ProtocolError(f"a message has {header.buffers} buffers, more than {MOST_BUFFERS}")
    if len(frame) < HEADER_BYTES + 8 * header.buffers:
        raise ProtocolError(f"a binary frame of {len(frame)} bytes has no room for {header.buffers} lengths")
    if header.json_bytes > text:
        sizes = f"{mebibytes(header.json_bytes)}, at most {mebibytes(text)}"
        raise ProtocolError(f"the JSON of a message is too big: {sizes}", CloseCode.TOO_BIG)
    size = _padded(HEADER_BYTES + 8 * header.buffers + header.json_bytes)
    for length in _lengths(frame, header.buffers):
        size += _padded(length)
    if size > limit:
        sizes = f"{mebibytes(size)}, at most {mebibytes(limit)}"
        raise ProtocolError(f"a message with buffers is too big: {sizes}", CloseCode.TOO_BIG)
    return size


def _lengths(frame: bytes | bytearray, count: int) -> tuple[int, ...]:
    return struct.unpack_from(f"<{count}Q", frame, HEADER_BYTES)


def _skip_padding(frame: bytes | bytearray, end: int) -> int:
    start = _padded(end)
    if any(frame[end:start]):
        raise ProtocolError(f"the padding at byte {end} of a binary frame is not zero")
    return start


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
