"""What a traced call was: its span, after OpenTelemetry, told on `trace.span` when it ends.

https://opentelemetry.io/docs/specs/otel/trace/api/#span. A call is traced when it came with a sampled W3C `traceparent`
and somebody has subscribed to `trace.span`; no other call pays for this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from microkernel.clock import Clock
from microkernel.errors import Code, MicrokernelError
from microkernel.events import Bus
from microkernel.message import Call, Message

__all__ = ["SUBJECT", "Span", "Spans"]

SUBJECT = "trace.span"
OK = "OK"

T = TypeVar("T")


class Span(Message):
    """One call or one stream. `started` is Unix time in seconds; `code` is `OK` or that of the error it ended with."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    started: float
    seconds: float
    code: str
    caller: str
    user: str | None
    priority: int


class Spans:
    """Tells of the traced calls of a node."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock

    def wants(self, call: Call) -> bool:
        """Whether `call` is to be traced."""
        trace = call.trace
        return trace is not None and trace.sampled and self._bus.hears(SUBJECT)

    async def around(self, work: Awaitable[T], target: str, call: Call) -> T:
        """Await the handler of `target`, and tell of it."""
        end = self.begin(target, call)
        code = OK
        try:
            return await work
        except BaseException as error:
            code = code_of(error)
            raise
        finally:
            end(code)

    def begin(self, target: str, call: Call) -> Callable[[str], None]:
        """The span of `call` begins now; what is returned is called with its code when it ends."""
        started, began = self._clock.wall(), self._clock.now()
        trace = call.trace
        assert trace is not None

        def end(code: str) -> None:
            span = Span(
                name=target,
                trace_id=trace.trace_id,
                span_id=trace.span_id,
                parent_id=trace.parent_id,
                started=started,
                seconds=self._clock.now() - began,
                code=code,
                caller=call.caller,
                user=call.user,
                priority=call.priority,
            )
            self._bus.publish(SUBJECT, span)

        return end


def code_of(error: BaseException | None) -> str:
    """The code of a call that ended with `error`."""
    if error is None:
        return OK
    if isinstance(error, MicrokernelError):
        return error.code.value
    return (Code.CANCELLED if isinstance(error, asyncio.CancelledError | GeneratorExit) else Code.INTERNAL).value
