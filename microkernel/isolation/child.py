"""The program of a child process: waits for a service, lives with it, and dies with the node.

It imports nothing that not every service needs: no aiohttp, which alone would take as long again as all the rest.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import importlib
import importlib.util
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from microkernel.errors import Invalid, Unavailable
from microkernel.isolation import frames
from microkernel.isolation.frame_socket import FrameSocket
from microkernel.isolation.guest import LOG, Guest, LogLine, Order, OwnExecutors, Source
from microkernel.isolation.link import Link
from microkernel.isolation.own_thread import loop_factory
from microkernel.isolation.packing import MessagePack
from microkernel.service import Service

__all__ = ["die_with", "main"]

PR_SET_PDEATHSIG = 1  # prctl(2)
ORPHANED = 3  # status of a process whose node is gone


def main(parent: int) -> None:
    """Serve until told to stop; `parent` is the node's process."""
    die_with(parent)
    faulthandler.enable()
    link = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_live(link))


def die_with(parent: int) -> None:
    """Have the system kill this process when its parent dies, also while its loop is blocked."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(ORPHANED)  # it died before we could ask


async def _live(socket_: socket.socket) -> None:
    guest = Guest(_make, OwnExecutors())
    link = guest.link = Link(MessagePack(), guest, "the kernel")
    transport = FrameSocket(link.received)
    link.transport = transport
    await asyncio.get_running_loop().create_unix_connection(lambda: transport, sock=socket_)
    transport.closed.add_done_callback(lambda _: None if guest.ended.is_set() else os._exit(ORPHANED))
    logging.getLogger().addHandler(_ToKernel(link))
    await guest.ended.wait()
    await link.close(Unavailable("the service has stopped", may_have_run=True))
    transport.close()
    await transport.closed


async def _make(order: Order) -> Service:
    """Import and make the service. It blocks the loop, on which nothing else runs yet."""
    assert order.source is not None
    logging.getLogger().setLevel(order.log_level)
    kind: Any = _load(order.source)
    for part in order.source.name.split("."):
        kind = getattr(kind, part)
    kind.name = order.name  # a file may have left it to its own name
    service: Service = kind()
    return service


def _load(source: Source) -> Any:
    """The module, by its name where that leads to the same file, otherwise by its file."""
    if source.file is None:
        return importlib.import_module(source.module)
    try:
        spec = importlib.util.find_spec(source.module)
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.origin is not None and Path(spec.origin).resolve() == Path(source.file).resolve():
        return importlib.import_module(source.module)
    spec = importlib.util.spec_from_file_location(source.module, source.file)
    if spec is None or spec.loader is None:
        raise Invalid(f"{source.file} is not a Python file")
    module = sys.modules[source.module] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _ToKernel(logging.Handler):
    """Sends the log to the node's; while the link is full, lines are left out and counted."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001 - as logging does: a line that cannot be made ends nobody
            self.handleError(record)
            return
        line = LogLine(record.name, record.levelno, text, record.created)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._send, line)  # compute threads log as well

    def _send(self, line: LogLine) -> None:
        if self._link.transport.is_full:
            self._left_out += 1
            return
        if self._left_out:
            line = LogLine(line.logger, line.level, f"({self._left_out} lines left out) {line.text}", line.created)
            self._left_out = 0
        self._link.post(frames.Send(LOG, self._link.packing.pack(line, "a line of the log")))
