"""What a service class answers: its handlers, as the annotations of its methods declare them."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Protocol, get_args, get_origin, get_type_hints

import msgspec

from microkernel.errors import Invalid
from microkernel.inputs import input_type
from microkernel.message import Nothing

__all__ = ["Continuation", "Handler", "HandlerKind", "Marks", "handler_of"]


class Continuation(Protocol):
    """How a stream goes on elsewhere when its node dies: made of its message, told of its items."""

    def take(self, item: Any) -> Any | None:
        """An item has come: what its reader gets of it, None for nothing."""

    def message(self) -> Any | None:
        """The message with which the stream begins, or goes on after what was taken; None when nothing is left.

        Raises a `MicrokernelError` where it cannot go on; its reader is told why it would have had to.
        """


class HandlerKind(StrEnum):
    """How a handler answers."""

    CALL = "call"
    STREAM = "stream"


class Marks(msgspec.Struct, frozen=True):
    """What a decorator leaves on a function."""

    kind: HandlerKind
    name: str | None
    concurrency: int
    queue: int
    deadline: float | None
    credit: int
    idempotent: bool
    anywhere: bool = False
    where: str = ""
    continues: Callable[[Any], Continuation | None] | None = None


class Handler(msgspec.Struct, frozen=True):
    """A reachable method. `message` is the type of its one parameter (`Nothing` if it takes none)."""

    name: str
    attribute: str
    kind: HandlerKind
    message: Any
    takes_message: bool
    result: Any
    concurrency: int
    queue: int
    deadline: float | None
    credit: int
    idempotent: bool
    summary: str
    inputs: Any = None  # the type of what its reader may send; None if it takes nothing
    anywhere: bool = False
    where: str = ""  # the field that names what a node has to have
    continues: Callable[[Any], Continuation | None] | None = None


def handler_of(kind: type[Any], attribute: str, function: Callable[..., Any], marks: Marks) -> Handler:
    """The handler that a marked method is. Raises `Invalid` for a signature that does not fit."""
    where = f"{kind.__name__}.{attribute}"
    is_stream = marks.kind is HandlerKind.STREAM
    if is_stream and not inspect.isasyncgenfunction(function):
        raise Invalid(f"{where}: @streams needs an async generator (async def … yield)")
    if not is_stream and not inspect.iscoroutinefunction(function):
        raise Invalid(f"{where}: @handles needs an async function")
    parameters = list(inspect.signature(function).parameters.values())[1:]
    hints = _hints(function, where)
    inputs = input_type(hints.get(parameters[-1].name)) if parameters else None
    if inputs is not None:
        if not is_stream:
            raise Invalid(f"{where}: only a stream takes Inputs: use @streams")
        parameters.pop()
    if len(parameters) > 1:
        raise Invalid(f"{where}: a handler takes one message, not {len(parameters)} parameters")
    message = hints.get(parameters[0].name, dict[str, Any]) if parameters else Nothing
    result = hints.get("return", Any)
    if is_stream and get_origin(result) is not None:
        result = get_args(result)[0] if get_args(result) else Any
    return Handler(
        name=marks.name or attribute,
        attribute=attribute,
        kind=marks.kind,
        message=message,
        takes_message=bool(parameters),
        result=types.NoneType if result is None else result,
        concurrency=marks.concurrency,
        queue=marks.queue,
        deadline=marks.deadline,
        credit=marks.credit,
        idempotent=marks.idempotent,
        summary=(inspect.getdoc(function) or "").partition("\n")[0],
        inputs=inputs,
        anywhere=marks.anywhere,
        where=marks.where,
        continues=marks.continues,
    )


def _hints(function: Callable[..., Any], where: str) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except Exception as error:
        # Annotations are code of the plugin's: they can raise whatever code can.
        raise Invalid(f"{where}: {error}, needed for its annotations at run time") from error
