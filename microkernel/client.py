"""What clients of a node import: `connect`, `connect_sync`, what they give, and the errors that they raise.

from microkernel import client

async with client.connect() as system:
    try:
        result = await system.call("kv.get", key="a", idempotency_key="order-7")
    except client.Unavailable as error:
        print(error.may_have_run)
"""

from __future__ import annotations

from microkernel.errors import (
    Aborted,
    AlreadyExists,
    CallCancelled,
    Code,
    DataLoss,
    DeadlineExceeded,
    Deadlock,
    Denied,
    Gone,
    Internal,
    Invalid,
    MicrokernelError,
    NotFound,
    Overloaded,
    PreconditionFailed,
    TooBig,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from microkernel.events import Event
from microkernel.monitors import Down, Up
from microkernel.wire.client import connect, connect_sync
from microkernel.wire.inbox import Monitor, Stream, Subscription
from microkernel.wire.record import Record
from microkernel.wire.sync_system import SyncStream, SyncSystem
from microkernel.wire.system import System

__all__ = [
    "connect",
    "connect_sync",
    "System",
    "SyncSystem",
    "Stream",
    "SyncStream",
    "Subscription",
    "Monitor",
    "Record",
    "Event",
    "Up",
    "Down",
    "Code",
    "MicrokernelError",
    "Aborted",
    "AlreadyExists",
    "CallCancelled",
    "DataLoss",
    "DeadlineExceeded",
    "Deadlock",
    "Denied",
    "Gone",
    "Internal",
    "Invalid",
    "NotFound",
    "Overloaded",
    "PreconditionFailed",
    "TooBig",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
]
