"""What is sent: messages, and the call that carries one through every service it passes.

A message is a frozen `msgspec.Struct`: one class is the type, the validation and the JSON Schema.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, TypeVar, dataclass_transform

import msgspec

from microkernel.buffers import Array, array_schema, array_to_json, decode_custom
from microkernel.errors import Denied, Invalid
from microkernel.trace import Trace

__all__ = [
    "Message",
    "FromJson",
    "Nothing",
    "Call",
    "calling_node",
    "calling_service",
    "calling_user",
    "current_call",
    "convert",
    "fault_of",
    "invalid_from",
    "is_root",
    "may_touch",
    "to_builtins",
    "schema_of",
    "PRIORITY",
]

PRIORITY = 5  # of 0 (urgent) … 9 (whenever there is nothing else)

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Message(msgspec.Struct, frozen=True):
    """Base class of what services send to each other; subclass it and list the fields.

    >>> class Put(Message):
    ...     key: str
    ...     value: bytes
    """


class Nothing(Message):
    """The message of a handler that takes none."""


class Call(msgspec.Struct, gc=False):
    """What travels with a message through every service: urgency, time, rights and trace.

    `deadline` is on the kernel's clock, in seconds. Until somebody needs it, it may be left open: `limit` seconds from
    when the call began, which costs no look at the clock. `chain` names the handlers that the call has passed,
    outermost first.
    """

    caller: str
    deadline: float | None = None
    priority: int = PRIORITY
    key: str | None = None
    user: str | None = None
    trace: Trace | None = None
    chain: tuple[str, ...] = ()
    limit: float | None = None


_current: ContextVar[Call | None] = ContextVar("microkernel_call", default=None)


def current_call() -> Call | None:
    """The call that the running handler answers; None outside of one."""
    call = _current.get()
    if call is not None and call.deadline is None and call.limit is not None:
        # It has not waited yet, or this had been settled: the time that it began is now.
        deadline = asyncio.get_running_loop().time() + call.limit
        call = msgspec.structs.replace(call, deadline=deadline)
        _current.set(call)
    return call


def calling_service() -> str:
    """The name of the service that the running handler answers, for what only services may ask.

    Raises `Denied` for callers from outside: theirs are the names with a space, such as "session s1".
    """
    call = _current.get()
    if call is None or " " in call.caller:
        raise Denied("only services of this node may ask for this")
    return call.caller


def calling_node() -> str:
    """The name of the node whose link the running handler was called over. Raises `Denied` for all other callers."""
    call = _current.get()
    kind, _, node = ("", "", "") if call is None else call.caller.partition(" ")
    if kind != "node" or not node:
        raise Denied("only another node may ask for this")
    return node


def calling_user() -> str | None:
    """The user on whose behalf the running handler was called; None for this node itself."""
    call = _current.get()
    return None if call is None else call.user


def is_root() -> bool:
    """Whether the running call comes from root or this node itself."""
    return calling_user() in {None, "root"}


def may_touch(owner: str) -> bool:
    """Whether the running call may see and change what is `owner`'s: the owner may, and root, and this node itself."""
    return calling_user() in {None, "root", owner}


class FromJson:
    """A plain value that came as JSON with arrays and long bytes beside it: other bytes in it are base64 text."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def convert(value: Any, kind: type[T], *, what: str = "message") -> T:
    """`value` (fields, a dataclass, a struct, `FromJson`) as a `kind`; raises `Invalid` that names the field."""
    if type(value) is kind:
        return value
    own: tuple[type, ...] = (bytes,)  # what is not to be written as text
    if type(value) is FromJson:
        value, own = value.value, ()
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value, builtin_types=(bytes, Array))
    try:
        return msgspec.convert(value, kind, strict=True, builtin_types=own, dec_hook=decode_custom)
    except msgspec.ValidationError as error:
        raise invalid_from(error, what) from error


def invalid_from(error: msgspec.ValidationError, what: str) -> Invalid:
    """msgspec's word on a value that does not fit, as ours: names `what` was given and the field at fault."""
    sentence, field = fault_of(error)
    return Invalid(f"{what}: {sentence}" + (f" in field '{field}'" if field else ""), field=field)


def fault_of(error: msgspec.ValidationError) -> tuple[str, str | None]:
    """What does not fit, and the path of the field (`a.b[0]`); None where it is the value as a whole."""
    sentence, _, path = str(error).partition(" - at `$")
    return sentence, path.rstrip("`").lstrip(".") or None


def to_builtins(value: Any) -> Any:
    """`value` as what JSON can say; bytes become base64 text."""
    return msgspec.to_builtins(value, enc_hook=_builtins_of_custom)


def schema_of(kind: Any) -> Mapping[str, Any]:
    """JSON Schema (draft 2020-12) of a message type; `{}` (anything) where there is none."""
    try:
        return msgspec.json.schema(kind, schema_hook=_schema_of_custom)
    except TypeError:
        return {}


def _builtins_of_custom(value: Any) -> Any:
    if isinstance(value, Array):
        return array_to_json(value)
    raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")


def _schema_of_custom(kind: type) -> dict[str, Any]:
    if kind is Array:
        return array_schema()
    raise TypeError(f"there is no JSON Schema of {kind!r}")
