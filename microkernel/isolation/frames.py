"""What crosses between the kernel and a service that lives away from its loop (hot: once a message).

These are the messages of `mk.v1` (call, result, error, open, item, credit, end, cancel, send, publish) with what a
client is not trusted to say: on whose behalf a call is made. Both ends call and both answer, so an `id` belongs to
the end that chose it. In a thread the frames themselves cross, and a body is the very object; to a process they go as
MessagePack behind a length, which unlike JSON has bytes and NaN.
"""

from __future__ import annotations

from typing import Any, TypeAlias, dataclass_transform

import msgspec

from microkernel.message import PRIORITY, Call
from microkernel.trace import Trace

__all__ = [
    "Context", "Options", "Frame", "Known",
    "Ask", "Cancel", "Credit", "End", "Error", "Finish", "Input", "Item", "Open", "Publish", "Result", "Room", "Send",
]  # fmt: skip


class Context(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The call that is being answered, as the other end continues it; `left` is in seconds."""

    caller: str
    left: float | None = None
    priority: int = PRIORITY
    key: str | None = None
    user: str | None = None
    trace: Trace | None = None
    chain: tuple[str, ...] = ()

    @classmethod
    def of(cls, call: Call, now: float) -> Context:
        """`call` as it stands at `now` on the clock of this end."""
        left = None if call.deadline is None else call.deadline - now
        return cls(call.caller, left, call.priority, call.key, call.user, call.trace, call.chain)

    def call(self, now: float) -> Call:
        """The call, on the clock of this end."""
        deadline = None if self.left is None else now + self.left
        return Call(self.caller, deadline, self.priority, self.key, self.user, self.trace, self.chain)


class Options(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a service says about a call that it makes: the arguments of `Port.call`; `deadline` in seconds.

    `caller` and `user` are set by a port that was narrowed; `one_way` is `Port.send`.
    """

    deadline: float | None = None
    priority: int | None = None
    key: str | None = None
    trace: Trace | None = None
    one_way: bool = False
    caller: str | None = None
    user: str | None = None


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Frame(msgspec.Struct, frozen=True, array_like=True, tag=str.lower, gc=False):
    """Base of all that crosses. A `body` is what its end's packing has made of a value: in a thread the value."""


class Ask(Frame, tag="call"):
    """A request; `context` is the call in which it is made, None outside of one."""

    id: int
    to: str
    body: msgspec.Raw
    context: Context | None = None
    options: Options | None = None


class Open(Frame):
    """Ask for a stream; `credit` is how many items the reader can take."""

    id: int
    to: str
    body: msgspec.Raw
    credit: int
    context: Context | None = None
    options: Options | None = None


class Result(Frame):
    """How a request ends well; `kind` names the type of the body, where that has a name."""

    id: int
    body: msgspec.Raw
    kind: Any = None


class Item(Frame):
    """One item of a stream; takes one credit."""

    id: int
    body: msgspec.Raw
    kind: Any = None


class End(Frame):
    """How a stream ends well."""

    id: int


class Error(Frame):
    """How a request or a stream ends badly: the exception itself, or its report."""

    id: int
    error: Any


class Credit(Frame):
    """Room for `n` items more."""

    id: int
    n: int


class Cancel(Frame):
    """Whoever asked is gone; it is still answered, so that the end of the work is known."""

    id: int


class Input(Frame):
    """What the reader of a stream sends into it; takes one room."""

    id: int
    body: msgspec.Raw


class Finish(Frame):
    """The reader of a stream sends no more."""

    id: int


class Room(Frame):
    """The handler of a stream takes `n` inputs more."""

    id: int
    n: int


class Send(Frame):
    """One way: nothing comes back."""

    to: str
    body: msgspec.Raw


class Publish(Frame):
    """An event of the service's, for whoever has subscribed."""

    subject: str
    body: msgspec.Raw
    kind: Any = None


Known: TypeAlias = Ask | Open | Result | Item | End | Error | Credit | Cancel | Input | Finish | Room | Send | Publish
