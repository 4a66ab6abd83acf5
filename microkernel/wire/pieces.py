"""Pieces of a client's work, as they wait for their turn; calls and one-way messages are there as they came."""

from __future__ import annotations

from typing import Any

import msgspec

from microkernel.events import Subscription
from microkernel.monitors import Monitor
from microkernel.port import Stream
from microkernel.wire import codec

__all__ = ["Listens", "Opened", "Timed", "Told"]


class Opened(msgspec.Struct, gc=False):
    """A stream that is to be run."""

    id: int
    to: str
    stream: Stream


class Timed(msgspec.Struct, gc=False):
    """A call with a deadline, which counts from here on, however long it waits for its turn."""

    to: str
    call: codec.Call
    ends: float


class Listens(msgspec.Struct, gc=False):
    """A subscription or a monitor that is to be followed."""

    id: int
    source: Subscription | Monitor


class Told(msgspec.Struct, gc=False):
    """An event that is to be published."""

    subject: str
    body: Any
