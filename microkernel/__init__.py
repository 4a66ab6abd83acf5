"""The operating system for language models: a tiny asyncio microkernel.

`import microkernel as mk` gives what clients and plugin authors need; everything heavy is imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microkernel.backlog import Overflow
from microkernel.buffers import Array
from microkernel.errors import Code, MicrokernelError
from microkernel.events import Event
from microkernel.message import Message, current_call
from microkernel.service import Service, every, handles, on, streams

if TYPE_CHECKING:
    from microkernel.wire.client import connect, connect_sync

__all__ = [
    "Array",
    "Code",
    "Event",
    "Message",
    "MicrokernelError",
    "Overflow",
    "Service",
    "__version__",
    "connect",
    "connect_sync",
    "current_call",
    "every",
    "handles",
    "on",
    "streams",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # The client brings aiohttp along; a plugin that only defines a service need not wait for it.
    if name in {"connect", "connect_sync"}:
        from microkernel.wire import client  # noqa: PLC0415 - see above

        return getattr(client, name)
    raise AttributeError(f"module 'microkernel' has no attribute '{name}'")
