"""The messages of `mk.v1` as text frames: one JSON message or an array of them. Hot: once a message.

Their types are in `messages`, and reached through this module. A body stays the bytes it came as until somebody knows
its type, so it is decoded once. Unknown fields are ignored and an unknown `t` is no error: old and new ends work
together.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Any, TypeVar

import msgspec

from microkernel.buffers import decode_custom
from microkernel.errors import Code, ErrorReport, Invalid, MicrokernelError, TooBig
from microkernel.message import FromJson, convert
from microkernel.wire.body import (
    LONG_BYTES,
    Body,
    Bulk,
    HoldsBuffers,
    bulk_of,
    encode_inline,
    encode_plain,
    has_long_bytes,
    is_long_bytes,
    refuse,
    value_of,
)
from microkernel.wire.messages import (
    EMPTY,
    LARGEST_INTEGER,
    LONGEST_NAME,
    UNNUMBERED,
    Ack,
    Auth,
    Bye,
    Call,
    Cancel,
    Credit,
    Down,
    End,
    Error,
    Event,
    Frame,
    Hello,
    Item,
    Known,
    MaxSizes,
    Monitor,
    Open,
    Ping,
    Pong,
    Publish,
    Ready,
    Result,
    Resume,
    Send,
    Subscribe,
    Unknown,
    Unsubscribe,
    Up,
)

__all__ = [
    "VERSION", "SUBPROTOCOL", "NORMAL", "LOST", "DEFECT", "EMPTY", "LARGEST_INTEGER", "LONGEST_NAME", "UNNUMBERED",
    "CloseCode", "ProtocolError", "Frame", "Known",
    "Ack", "Auth", "Bye", "Call", "Cancel", "Credit", "End", "Error", "Event", "Hello", "Item", "MaxSizes",
    "Down", "Monitor", "Open", "Ping", "Pong", "Publish", "Ready", "Result", "Resume", "Send",
    "Subscribe", "Unknown", "Unsubscribe", "Up",
    "decode", "split", "decode_part", "decode_one", "encode", "given", "join", "body_of", "text_of", "decode_body",
    "error_frame", "report_of", "size_of", "reason_text", "mebibytes",
]  # fmt: skip

VERSION = 1
SUBPROTOCOL = "mk.v1"
NORMAL = 1000  # closed by will, RFC 6455 §7.4.1
LOST = 1006  # the link broke without a close
DEFECT = 1011  # the end that closes has failed
REASON_BYTES = 123  # what a close frame has room for, RFC 6455 §5.5
LONGEST_TEXT = 2048  # characters of each text in an error
MOST_CAUSES = 8

T = TypeVar("T")
MOST_BUFFERS = 1024  # of one message
BUFFER_OVERHEAD = 8 + 15  # bytes: its length, and the padding behind it
ENVELOPE = 2048  # bytes of a frame that are neither body nor buffers


class CloseCode(IntEnum):
    """Why a link was closed: 4400-4499 mean *come back*, 4500-4999 *do not come back with the same*."""

    GOING_AWAY = 4400
    SLOW_READER = 4401
    NO_ANSWER = 4402
    PROTOCOL = 4501
    UNAUTHENTICATED = 4502
    HANDSHAKE_TIMEOUT = 4503
    TOO_BIG = 4504
    RATE = 4505
    VERSION = 4506
    BINARY = 4507
    TAKEN_OVER = 4508


class ProtocolError(Exception):
    """What came is no `mk.v1`; the link is closed with `code` and this reason."""

    def __init__(self, reason: str, code: CloseCode = CloseCode.PROTOCOL) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


_TAGS = frozenset(kind.__struct_config__.tag for kind in Known.__args__)

_encoder = msgspec.json.Encoder(enc_hook=refuse)
_one = msgspec.json.Decoder(Known)
_many = msgspec.json.Decoder(list[Known])
_parts = msgspec.json.Decoder(list[msgspec.Raw])
_unknown = msgspec.json.Decoder(Unknown)
_report = msgspec.json.Decoder(ErrorReport)


def decode(text: str) -> list[Known | Unknown]:
    """The messages of one text frame, in order; raises `ProtocolError` that names the place and the field."""
    try:
        if text.lstrip()[:1] == "[":
            many: list[Known | Unknown] = _many.decode(text)  # type: ignore[assignment] # a list of fewer types
            return many
        return [_one.decode(text)]
    except msgspec.ValidationError:  # the slow path: something in the frame is unknown or wrong
        parts = split(text)
        return [decode_part(parts, place) for place in range(len(parts))]
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise ProtocolError(f"a text frame is no JSON: {error}") from error


def split(text: str) -> list[msgspec.Raw]:
    """The messages of one text frame as they came; raises `ProtocolError` for what is no JSON."""
    try:
        return _parts.decode(text) if text.lstrip()[:1] == "[" else [msgspec.Raw(text)]
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise ProtocolError(f"a text frame is no JSON: {error}") from error


def decode_part(parts: list[msgspec.Raw], place: int) -> Known | Unknown:
    """One message of a frame that was split; raises `ProtocolError`."""
    try:
        unknown = _unknown.decode(parts[place])
        return _one.decode(parts[place]) if unknown.t in _TAGS else unknown
    except msgspec.ValidationError as error:
        raise ProtocolError(f"message {place + 1} of {len(parts)}: {error}") from error
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise ProtocolError(f"a text frame is no JSON: {error}") from error


def decode_one(text: bytes) -> Known | Unknown:
    """The one message of a binary frame; raises `ProtocolError`."""
    try:
        unknown = _unknown.decode(text)
        return _one.decode(text) if unknown.t in _TAGS else unknown
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise ProtocolError(f"the JSON of a binary frame is no message: {error}") from error


def encode(frame: Frame) -> bytes:
    """One message as JSON; raises `HoldsBuffers` when its body is a `Bulk`."""
    return _encoder.encode(frame)


def join(messages: Iterable[bytes]) -> bytes:
    """Many encoded messages as one array."""
    return b"[" + b",".join(messages) + b"]"


def body_of(value: Any, *, what: str, limit: int, binary: int = 0) -> Body:
    """`value` as a body, with buffers where it holds arrays or long bytes and the other end takes `binary` bytes.

    Raises `Invalid` if JSON cannot say it, `TooBig` past `limit` bytes of JSON or `binary` bytes in all.
    """
    try:
        if binary:
            try:
                body = encode_plain(value)
            except HoldsBuffers:
                return _checked(bulk_of(value), what, limit, binary)
        else:
            body = encode_inline(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise Invalid(f"{what} cannot be sent as JSON: {error}") from error
    if len(body) > limit:
        raise TooBig(
            f"{what} takes {mebibytes(len(body))}; a text frame holds {mebibytes(limit)}",
            remedy="send it as a stream of smaller items",
        )
    return msgspec.Raw(body)


def text_of(value: Any, limit: int) -> bytes | None:
    """`value` as JSON, for the most part what `body_of` says; None where it takes a closer look."""
    if is_long_bytes(value):
        return None
    try:
        text = _encoder.encode(value)
    except (HoldsBuffers, TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return None
    size = len(text)
    return text if size <= limit and (size < LONG_BYTES or not has_long_bytes(value)) else None


def decode_body(body: Body, kind: type[T] | Any = Any, *, what: str = "message") -> T:
    """A body as a `kind`; raises `Invalid` that says where it does not fit."""
    if isinstance(body, Bulk):
        # Where no type says that it is bytes, they are what they are in JSON.
        value: T = value_of(body, what=what, as_text=kind is Any)
        if kind is not Any:
            value = convert(FromJson(value), kind, what=what)
        return value
    try:
        decoded: T = msgspec.json.decode(body, type=kind, dec_hook=decode_custom)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise Invalid(f"{what}: {error}") from error
    return decoded


def given(body: Body, *, what: str) -> Any:
    """A body as a port takes it: JSON as it came, or what stands for it. Raises `Invalid`."""
    return FromJson(value_of(body, what=what)) if type(body) is Bulk else body


def _checked(bulk: Bulk, what: str, limit: int, binary: int) -> Bulk:
    if len(bulk.buffers) > MOST_BUFFERS:
        raise TooBig(f"{what} holds {len(bulk.buffers)} arrays; a message holds {MOST_BUFFERS}")
    if len(bulk.json) > limit or bulk.nbytes + len(bulk.buffers) * BUFFER_OVERHEAD > binary - ENVELOPE:
        raise TooBig(
            f"{what} takes {mebibytes(bulk.nbytes)}, of which JSON is {mebibytes(len(bulk.json))}; a message holds "
            f"{mebibytes(binary)}, of which JSON is {mebibytes(limit)} at most",
            remedy="send it as a stream of smaller items",
        )
    return bulk


def error_frame(number: int | None, error: MicrokernelError) -> Error:
    """The frame that tells of `error`; its texts are cut to a length that always fits a frame."""
    report = error.report()
    cut = {
        "message": _cut(report.message),
        "remedy": None if report.remedy is None else _cut(report.remedy),
        "causes": tuple(_cut(cause) for cause in report.causes[:MOST_CAUSES]),
    }
    return Error(id=number, error=msgspec.Raw(_encoder.encode(msgspec.structs.replace(report, **cut))))


def report_of(frame: Error) -> ErrorReport:
    """What an error frame tells; an unreadable report is an `INTERNAL` error that quotes it."""
    try:
        return _report.decode(frame.error)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        quoted = bytes(frame.error)[:200].decode(errors="replace")
        return ErrorReport(Code.INTERNAL, f"the other end reported an error that is not understood here: {quoted}")


def size_of(text: str, limit: int) -> int:
    """The bytes of a text frame; the characters where so few are surely within `limit`."""
    # A character takes at most four bytes: only long frames are measured.
    return len(text) if len(text) * 4 <= limit else len(text.encode(errors="surrogatepass"))


def reason_text(reason: str) -> bytes:
    """`reason` cut to what a close frame has room for, at a whole character."""
    raw = reason.encode(errors="replace")
    return raw if len(raw) <= REASON_BYTES else raw[: REASON_BYTES - 3].decode(errors="ignore").encode() + "…".encode()


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def mebibytes(count: float) -> str:
    """A size for people."""
    return f"{count / 2**20:.1f} MiB"
