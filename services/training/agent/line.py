"""An agent's end of the line to one of its processes: orders go out, reports come in."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from microkernel.errors import DataLoss
from services.training.orders import Order, Report, decode_report, frame, frames

__all__ = ["Line"]


class Line:
    """Calls `heard` with each report, on the loop. A line that is broken is silent: how a process ends, others tell."""

    def __init__(
        self, link: socket.socket, heard: Callable[[Report], None], defect: Callable[[DataLoss], None]
    ) -> None:
        """`defect` is told of what is no report; nothing more is heard then."""
        self._link = link
        self._heard = heard
        self._defect = defect
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._unsent = bytearray()
        self._closed = False
        link.setblocking(False)
        self._loop.add_reader(link, self._read)

    def tell(self, order: Order) -> None:
        """Give an order; nothing happens where nobody is left to take it."""
        if self._closed:
            return
        self._unsent += frame(order)
        self._write()

    def close(self) -> None:
        """Hear and say nothing more."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._link)
            self._loop.remove_writer(self._link)
            self._link.close()

    def _write(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._link.send(self._unsent)]
        except BlockingIOError:
            self._loop.add_writer(self._link, self._write)
            return
        except OSError:
            self._unsent.clear()
        with contextlib.suppress(ValueError):
            self._loop.remove_writer(self._link)

    def _read(self) -> None:
        try:
            chunk = self._link.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self.close()
            return
        self._buffer += chunk
        try:
            for body in frames(self._buffer):
                self._heard(decode_report(body))
        except DataLoss as error:
            self.close()
            self._defect(error)
