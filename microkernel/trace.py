"""Trace identity of a call: W3C Trace Context, https://www.w3.org/TR/trace-context/."""

from __future__ import annotations

import re
import secrets

import msgspec

__all__ = ["Trace", "new_trace", "parse_traceparent"]

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class Trace(msgspec.Struct, frozen=True, gc=False):
    """`trace_id` is shared by all calls of one request; `span_id` is this call's own, `parent_id` its caller's."""

    trace_id: str
    span_id: str
    sampled: bool = True
    parent_id: str | None = None

    def child(self) -> Trace:
        """The identity of a call that this one makes."""
        return Trace(self.trace_id, secrets.token_hex(8), self.sampled, self.span_id)

    @property
    def traceparent(self) -> str:
        """The header's value."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def new_trace() -> Trace:
    """A trace that begins here."""
    return Trace(secrets.token_hex(16), secrets.token_hex(8))


def parse_traceparent(header: str) -> Trace | None:
    """The trace a header names, None if it is not one (the standard says: then begin anew)."""
    match = _TRACEPARENT.fullmatch(header.strip().lower())
    if match is None or match[1] == "0" * 32 or match[2] == "0" * 16:
        return None
    return Trace(match[1], match[2], bool(int(match[3], 16) & 1))
