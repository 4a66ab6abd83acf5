"""A process for one service (`isolation = "process"`): whatever happens in it, the node goes on.

Death by any cause (a signal, a segmentation fault, `os._exit`, no memory) ends the calls in flight with that cause.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from typing import Any

from microkernel.errors import Invalid, MicrokernelError, Unavailable
from microkernel.isolation.child_process import Child, ending
from microkernel.isolation.frame_socket import FrameSocket
from microkernel.isolation.guest import Source
from microkernel.isolation.link import Link, Serves
from microkernel.isolation.packing import MessagePack, Packing
from microkernel.isolation.spare import Spare
from microkernel.service import Service

__all__ = ["OwnProcess", "source_of"]

IMPORT_TIMEOUT = 60.0  # seconds; torch alone takes several on a cold disk
LAST_WORDS = 0.5  # seconds from the loss of the link until the system knows how the process ended


class OwnProcess:
    """The dwelling of one incarnation."""

    def __init__(self, name: str, kind: Any, spare: Spare, log: logging.Logger) -> None:
        """Raises `Invalid` for a class that another process cannot find."""
        self.packing: Packing = MessagePack()
        self.import_timeout = IMPORT_TIMEOUT
        self.source: Source | None = source_of(kind)
        self._name = name
        self._log = log
        self._spare = spare
        self._child: Child | None = None
        self._socket: FrameSocket | None = None

    async def open(self, serves: Serves) -> Link:
        """Give the service a process."""
        try:
            child = self._child = await self._spare.take()
        except OSError as error:
            raise Unavailable(
                f"service '{self._name}' got no process: {error.strerror}", service=self._name, may_have_run=False
            ) from error
        child.log = self._log
        link = Link(self.packing, serves, f"service '{self._name}'")
        frames = self._socket = FrameSocket(link.received)
        link.transport = frames
        await asyncio.get_running_loop().create_unix_connection(lambda: frames, sock=child.socket)
        return link

    async def gone(self) -> MicrokernelError:
        """Return once the process or its link is gone; nothing is left of it then."""
        child, frames = self._child, self._socket
        assert child is not None
        assert frames is not None
        ends: list[asyncio.Future[Any]] = [child.exited, frames.closed]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not child.exited.done():
            await asyncio.wait([child.exited], timeout=LAST_WORDS)
        if child.exited.done():
            how = ending(child.pid, child.exited.result())
        else:
            how = f"process {child.pid} has left: {frames.why}"
            child.kill()
        return Unavailable(
            f"service '{self._name}' is gone: {how}",
            service=self._name,
            retry_after=1.0,
            may_have_run=True,
            causes=(how, *tuple(child.lines)[-1:]),
        )

    async def close(self) -> None:
        """End the process."""
        if self._socket is not None:
            self._socket.close()
        if self._child is not None:
            await self._child.end()


def source_of(kind: Any) -> Source:
    """Where another process finds the class `kind`. Raises `Invalid` if it cannot."""
    if not inspect.isclass(kind) or not issubclass(kind, Service):
        raise Invalid("a service that was given as an object cannot move to another process", remedy="give its class")
    module = sys.modules.get(kind.__module__)
    found: Any = module
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is not kind:
        raise Invalid(
            f"another process cannot find {kind.__module__}.{kind.__qualname__}",
            remedy="define the class at the top of a module",
        )
    name = "microkernel_main" if kind.__module__ == "__main__" else kind.__module__
    return Source(name, kind.__qualname__, getattr(module, "__file__", None))
