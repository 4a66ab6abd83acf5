"""Websocket frames written and read by hand (RFC 6455, section 5): what no library would send, and a strict reader.

The reader fails the test with `Breach` when the end under test sends what the RFC forbids, whatever the test is about:
wrong masking, reserved bits, lengths that are longer than they need be, control frames that are long or in pieces,
continuations of nothing, text that is no UTF-8, close frames with codes that must not be sent, frames after a close.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

__all__ = ["Breach", "Frame", "FrameReader", "Opcode", "close_frame"]

KEY = bytes.fromhex("37fa213d")  # the masking key of the RFC's examples
NOT_SENT = {1004, 1005, 1006, 1015}  # section 7.4.1: no close frame has these codes
DEFINED = 1016  # the codes below it and from 1000 on are those that IANA's registry knows


class Opcode(IntEnum):
    """Section 5.2: the rest is reserved."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class Stream(Protocol):
    """Where frames are read from."""

    async def readexactly(self, size: int) -> bytes:
        """The next octets; raises `EOFError` at the end."""


class Breach(AssertionError):
    """The end under test has sent what RFC 6455 forbids."""


@dataclass(frozen=True)
class Frame:
    """One frame; `rsv` is its three reserved bits as a number."""

    opcode: int
    payload: bytes = b""
    fin: bool = True
    rsv: int = 0

    def encoded(self, *, masked: bool) -> bytes:
        """The frame as it goes over the connection."""
        size = len(self.payload)
        first = self.fin << 7 | self.rsv << 4 | self.opcode
        mask = masked << 7
        if size < 126:
            head = bytes((first, mask | size))
        elif size < 2**16:
            head = bytes((first, mask | 126)) + size.to_bytes(2, "big")
        else:
            head = bytes((first, mask | 127)) + size.to_bytes(8, "big")
        return head + KEY + _masked(self.payload, KEY) if masked else head + self.payload

    @property
    def close_code(self) -> int | None:
        """The code of a close frame; None where it has none."""
        return int.from_bytes(self.payload[:2], "big") if self.payload else None


def close_frame(code: int | None = None, reason: bytes = b"") -> Frame:
    """A close frame with any code and any reason."""
    return Frame(Opcode.CLOSE, (b"" if code is None else code.to_bytes(2, "big")) + reason)


class FrameReader:
    """Reads what the end under test sends: messages put together again, and control frames as they come."""

    def __init__(self, stream: Stream, *, masked: bool) -> None:
        """`masked` is whether the other end has to mask: clients have to, servers must not (section 5.1)."""
        self._stream = stream
        self._masked = masked
        self._opcode = 0  # of the message that is under way
        self._parts: list[bytes] = []
        self._closed = False

    async def read(self) -> Frame | None:
        """The next message or control frame; None when the connection has ended."""
        while (frame := await self._frame()) is not None:
            if frame.opcode >= Opcode.CLOSE:
                _check_control(frame)
                return frame
            if (frame.opcode == Opcode.CONTINUATION) != bool(self._opcode):
                raise Breach(f"opcode {frame.opcode} where a message of opcode {self._opcode} is under way")
            self._opcode = self._opcode or frame.opcode
            self._parts.append(frame.payload)
            if frame.fin:
                return self._whole()
        return None

    def _whole(self) -> Frame:
        opcode, payload = self._opcode, b"".join(self._parts)
        self._opcode, self._parts = 0, []
        if opcode == Opcode.TEXT:
            _check_text(payload)
        return Frame(opcode, payload)

    async def _frame(self) -> Frame | None:
        try:
            first, second = await self._stream.readexactly(2)
            if self._closed:
                raise Breach("a frame after the close frame")
            frame = await self._rest(first, second)
        except EOFError:
            return None
        self._closed = frame.opcode == Opcode.CLOSE
        return frame

    async def _rest(self, first: int, second: int) -> Frame:
        rsv, opcode, size = first >> 4 & 7, first & 15, second & 127
        if rsv or opcode not in set(Opcode):
            raise Breach(f"a frame with the reserved bits {rsv} and the opcode {opcode}")
        if bool(second & 128) != self._masked:
            raise Breach("a frame without a mask" if self._masked else "a frame with a mask")
        if size >= 126:
            least, octets = (126, 2) if size == 126 else (2**16, 8)
            size = int.from_bytes(await self._stream.readexactly(octets), "big")
            if size < least:
                raise Breach(f"a length of {size} in {octets} octets")
        key = await self._stream.readexactly(4) if self._masked else bytes(4)
        payload = await self._stream.readexactly(size)
        return Frame(opcode, _masked(payload, key) if self._masked else payload, fin=bool(first & 128), rsv=rsv)


def _masked(payload: bytes, key: bytes) -> bytes:
    size = len(payload)
    pad = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")


def _check_control(frame: Frame) -> None:
    if not frame.fin or len(frame.payload) > 125:
        raise Breach(f"a control frame of {len(frame.payload)} octets, fin {frame.fin}")
    if frame.opcode != Opcode.CLOSE or not frame.payload:
        return
    code = frame.close_code
    if len(frame.payload) == 1 or code is None or not _may_be_sent(code):
        raise Breach(f"a close frame with the payload {frame.payload!r}")
    _check_text(frame.payload[2:])


def _may_be_sent(code: int) -> bool:
    return 3000 <= code < 5000 or (1000 <= code < DEFINED and code not in NOT_SENT)


def _check_text(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        raise Breach(f"text that is no UTF-8: {error}") from error
