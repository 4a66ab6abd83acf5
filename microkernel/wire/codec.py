"""The messages of `mk.v1` as text frames: one JSON message or an array of them. Hot: once a message.

Messages are tagged structs (`t` names the type). A body stays the bytes it came as until somebody knows its
type, so it is decoded once. Unknown fields are ignored and an unknown `t` is no error: old and new ends work
together.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Annotated, Any, TypeAlias, TypeVar, dataclass_transform

import msgspec

from microkernel.errors import Code, ErrorReport, Invalid, MicrokernelError, TooBig

__all__ = [
    "VERSION", "SUBPROTOCOL", "NORMAL", "LOST", "CloseCode", "ProtocolError", "Frame",
    "Auth", "Bye", "Call", "Cancel", "Credit", "End", "Error", "Event", "Hello", "Item", "MaxSizes",
    "Open", "Ping", "Pong", "Publish", "Ready", "Result", "Resume", "Send",
    "Subscribe", "Unknown", "Unsubscribe",
    "decode", "split", "decode_part", "encode", "join", "body_of", "decode_body", "error_frame", "report_of",
    "size_of", "reason_text", "mebibytes",
]  # fmt: skip

VERSION = 1
SUBPROTOCOL = "mk.v1"
NORMAL = 1000  # closed by will, RFC 6455 §7.4.1
LOST = 1006  # the link broke without a close
REASON_BYTES = 123  # what a close frame has room for, RFC 6455 §5.5
LONGEST_NAME = 256  # characters of an address, a subject or a group
LONGEST_TEXT = 2048  # characters of each text in an error
MOST_CAUSES = 8
LARGEST_INTEGER = 2**53 - 1  # what a JSON number holds exactly in a browser

T = TypeVar("T")
Id = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_INTEGER)]
Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_INTEGER)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(max_length=LONGEST_NAME)]  # it is named in errors: what comes back stays short
Key = Annotated[str, msgspec.Meta(max_length=128)]
Priority = Annotated[int, msgspec.Meta(ge=0, le=9)]
EMPTY = msgspec.Raw(b"{}")  # the body of a message that has none


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


class ProtocolError(Exception):
    """What came is no `mk.v1`; the link is closed with `code` and this reason."""

    def __init__(self, reason: str, code: CloseCode = CloseCode.PROTOCOL) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Frame(msgspec.Struct, frozen=True, tag_field="t", tag=str.lower, omit_defaults=True, gc=False):
    """Base of all messages; `t` on the wire is the class's name in small letters."""


class MaxSizes(msgspec.Struct, frozen=True):
    """The limits that a server announces; see `Limits` for what they mean."""

    text: int
    inflight: int
    credit: int
    subscriptions: int
    buffer: int
    messages: int
    rate: float
    burst: int


class Hello(Frame):
    """Server's first message."""

    v: int
    node: str
    epoch: str
    heartbeat: float
    max: MaxSizes


class Resume(msgspec.Struct, frozen=True):
    """The session that a client would like back."""

    session: str
    seen: Count = 0


class Auth(Frame):
    """Client's first message; it need not wait for the hello."""

    v: int
    token: str
    resume: Resume | None = None


class Ready(Frame):
    """The session is open. `rights` and `deny` are patterns of what it may call."""

    session: str
    epoch: str
    rights: tuple[str, ...]
    user: str
    seen: int = msgspec.field(default_factory=int)  # a factory keeps the field on the wire when it is 0
    resumed: bool = msgspec.field(default_factory=bool)
    deny: tuple[str, ...] = ()


class Call(Frame):
    """A request; `deadline` is milliseconds left, `trace` a W3C traceparent."""

    id: Id
    to: Name
    body: msgspec.Raw = EMPTY
    deadline: Milliseconds | None = None
    priority: Priority | None = None
    key: Key | None = None
    trace: str | None = None


class Result(Frame):
    """How a call ends well."""

    id: Id
    body: msgspec.Raw


class Error(Frame):
    """How a call, a stream or a subscription ends badly; without `id`, what became of a one-way message."""

    error: msgspec.Raw  # an ErrorReport; raw, so that a code of a later version does not end the link
    id: Id | None = None


class Send(Frame):
    """One-way: nothing comes back."""

    to: Name
    body: msgspec.Raw = EMPTY
    priority: Priority | None = None


class Open(Frame):
    """Ask for a stream; `credit` is how many items the reader can take, None leaves it to the server."""

    id: Id
    to: Name
    body: msgspec.Raw = EMPTY
    credit: Count | None = None
    deadline: Milliseconds | None = None
    priority: Priority | None = None
    key: Key | None = None
    trace: str | None = None


class Item(Frame):
    """One item of a stream."""

    id: Id
    body: msgspec.Raw


class End(Frame):
    """How a stream or a subscription ends well."""

    id: Id


class Credit(Frame):
    """Room for `n` items more."""

    id: Id
    n: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_INTEGER)]


class Cancel(Frame):
    """The caller is gone."""

    id: Id
    why: str | None = None


class Publish(Frame):
    """An event for whoever has subscribed."""

    subject: Name
    body: msgspec.Raw = EMPTY


class Subscribe(Frame):
    """Ask for events; of all subscribers in one `group` each event goes to one."""

    id: Id
    subject: Name
    group: Name | None = None
    since: int | None = None


class Unsubscribe(Frame):
    """No more events; answered by `end`."""

    id: Id


class Event(Frame):
    """One event of a subscription."""

    id: Id
    subject: str
    offset: int
    body: msgspec.Raw


class Ping(Frame):
    """Are you there? Answered by `pong` with the same `ts`."""

    ts: float = msgspec.field(default_factory=float)


class Pong(Frame):
    """Here."""

    ts: float = msgspec.field(default_factory=float)


class Bye(Frame):
    """The sender is about to leave: finish, and come back after so many milliseconds."""

    reason: str = ""
    after: Milliseconds | None = None


class Unknown(msgspec.Struct, frozen=True):
    """A message of a type that this end does not know."""

    t: str
    id: Any = None


Known: TypeAlias = (
    Hello | Auth | Ready | Call | Result | Error | Send | Open | Item | End | Credit | Cancel | Publish
    | Subscribe | Unsubscribe | Event | Ping | Pong | Bye
)  # fmt: skip
_TAGS = frozenset(kind.__struct_config__.tag for kind in Known.__args__)

_encoder = msgspec.json.Encoder()
_one = msgspec.json.Decoder(Known)
_many = msgspec.json.Decoder(list[Known])
_parts = msgspec.json.Decoder(list[msgspec.Raw])
_unknown = msgspec.json.Decoder(Unknown)
_report = msgspec.json.Decoder(ErrorReport)


def decode(text: str) -> list[Known | Unknown]:
    """The messages of one text frame, in order; raises `ProtocolError` that names the place and the field."""
    try:
        if text.lstrip()[:1] == "[":
            return list(_many.decode(text))
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


def encode(frame: Frame) -> bytes:
    """One message as JSON."""
    return _encoder.encode(frame)


def join(messages: Iterable[bytes]) -> bytes:
    """Many encoded messages as one array."""
    return b"[" + b",".join(messages) + b"]"


def body_of(value: Any, *, what: str, limit: int) -> msgspec.Raw:
    """`value` as a body; raises `Invalid` if JSON cannot say it, `TooBig` past `limit` bytes."""
    try:
        body = _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise Invalid(f"{what} cannot be sent as JSON: {error}") from error
    if len(body) > limit:
        raise TooBig(
            f"{what} takes {mebibytes(len(body))}; a text frame holds {mebibytes(limit)}",
            remedy="send it as a stream of smaller items",
        )
    return msgspec.Raw(body)


def decode_body(body: msgspec.Raw, kind: type[T] | Any = Any, *, what: str = "message") -> T:
    """A body as a `kind`; raises `Invalid` that says where it does not fit."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise Invalid(f"{what}: {error}") from error


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
