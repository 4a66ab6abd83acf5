"""The messages of `mk.v1` as types: tagged structs, of which `t` on the wire names the type."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, dataclass_transform

import msgspec

from microkernel.wire.body import Body

__all__ = [
    "EMPTY", "LARGEST_INTEGER", "LONGEST_NAME", "UNNUMBERED", "Frame", "Known", "Unknown",
    "Ack", "Auth", "Bye", "Call", "Cancel", "Credit", "Down", "End", "Error", "Event", "Hello", "Item", "MaxSizes",
    "Monitor", "Open", "Ping", "Pong", "Publish", "Ready", "Result", "Resume", "Send", "Subscribe", "Unsubscribe", "Up",
]  # fmt: skip

LONGEST_NAME = 256  # characters of an address, a subject or a group
LARGEST_INTEGER = 2**53 - 1  # what a JSON number holds exactly in a browser
EMPTY = msgspec.Raw(b"{}")  # the body of a message that has none

Id = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_INTEGER)]
Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_INTEGER)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(max_length=LONGEST_NAME)]  # it is named in errors: what comes back stays short
Key = Annotated[str, msgspec.Meta(max_length=128)]
Priority = Annotated[int, msgspec.Meta(ge=0, le=9)]


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
    binary: int = 0  # nodes of an earlier version take none


class Hello(Frame):
    """Server's first message."""

    v: int
    node: str
    epoch: str
    heartbeat: float
    max: MaxSizes
    resume: float = 0.0  # seconds that a session survives without a link


class Resume(msgspec.Struct, frozen=True):
    """The session that a client would like back; empty asks for a new one that can be resumed."""

    session: str = ""
    seen: Count = 0


class Auth(Frame):
    """Client's first message; it need not wait for the hello."""

    v: int
    token: str
    resume: Resume | None = None
    binary: Count = 0  # bytes of the longest message with buffers that the client takes


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
    """A request; `deadline` is milliseconds left, `trace` a W3C traceparent.

    `age` is for a call that is made again under its key: milliseconds since it was first sent. `user` is on whose
    behalf another node calls; of others it is not taken.
    """

    id: Id
    to: Name
    body: Body = EMPTY
    deadline: Milliseconds | None = None
    priority: Priority | None = None
    key: Key | None = None
    trace: str | None = None
    age: Milliseconds | None = None
    user: Name | None = None

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing about it but its body, and for whom it is."""
        return self.deadline is None and self.priority is None and self.key is None and self.trace is None


class Result(Frame):
    """How a call ends well."""

    id: Id
    body: Body


class Error(Frame):
    """How a call, a stream or a subscription ends badly; without `id`, what became of a one-way message."""

    error: msgspec.Raw  # an ErrorReport; raw, so that a code of a later version does not end the link
    id: Id | None = None


class Send(Frame):
    """One-way: nothing comes back."""

    to: Name
    body: Body = EMPTY
    priority: Priority | None = None
    user: Name | None = None


class Open(Frame):
    """Ask for a stream; `credit` is how many items the reader can take, None leaves it to the server."""

    id: Id
    to: Name
    body: Body = EMPTY
    credit: Count | None = None
    deadline: Milliseconds | None = None
    priority: Priority | None = None
    key: Key | None = None
    trace: str | None = None
    user: Name | None = None


class Item(Frame):
    """One item of a stream."""

    id: Id
    body: Body


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
    body: Body = EMPTY


class Subscribe(Frame):
    """Ask for events; of all subscribers in one `group` each event goes to one."""

    id: Id
    subject: Name
    group: Name | None = None
    since: Count | None = None


class Monitor(Frame):
    """Ask to be told when a service comes and goes, and how it is now."""

    id: Id
    service: Name


class Unsubscribe(Frame):
    """No more events, or no more of a monitor; answered by `end`."""

    id: Id


class Event(Frame):
    """One event of a subscription."""

    id: Id
    subject: str
    offset: int
    body: Body


class Up(Frame):
    """A service answers; `incarnation` counts its starts from 1."""

    id: Id
    service: str
    incarnation: int


class Down(Frame):
    """A service answers no longer."""

    id: Id
    service: str
    incarnation: int
    reason: str


class Ping(Frame):
    """Are you there? Answered by `pong` with the same `ts`."""

    ts: float = msgspec.field(default_factory=float)


class Pong(Frame):
    """Here."""

    ts: float = msgspec.field(default_factory=float)


class Ack(Frame):
    """So many of the other end's messages have been seen: it need not keep them any longer."""

    seen: Count


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
    | Subscribe | Monitor | Unsubscribe | Event | Up | Down | Ping | Pong | Ack | Bye
)  # fmt: skip
UNNUMBERED = frozenset({Hello, Auth, Ready, Ping, Pong, Ack, Bye})  # about the link, not about what goes over it
