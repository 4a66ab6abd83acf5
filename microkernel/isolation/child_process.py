"""A child process that waits to be given a service: its start, its link, its words and its end.

It is a fresh interpreter, never a fork of this one: threads, locks and sockets of the kernel are not copied. Its
standard input is one end of a socket pair, which is the link; nobody else can reach it, and it closes with us.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque

__all__ = ["Child", "ending"]

LEAVE = 0.5  # seconds to end by itself once the link is closed, then until it heeds SIGTERM
REAPED = 5.0  # seconds until a killed process is gone: longer only where the system itself hangs
KEPT_LINES, KEPT_WIDTH = 20, 2000
BOOTSTRAP = (
    "import sys; parent, sys.path[:] = int(sys.argv[1]), sys.argv[2:]; del sys.argv[1:]; "
    "from microkernel.isolation.child import main; main(parent)"
)


class Child:
    """One process. What it writes to its outputs goes to `log`, line by line."""

    def __init__(self) -> None:
        """Start it. Raises `OSError` where the system has no room for another process."""
        self.log = logging.getLogger("microkernel.isolation")
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)  # the last that it has written
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self.socket, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = _start(theirs)
        except OSError:
            self.socket.close()
            raise
        self.pid = self._process.pid
        self._rest = b""
        self._listen()
        self._watch()

    async def end(self) -> None:
        """Close the link and have the process end: by itself, by SIGTERM, by SIGKILL."""
        self.socket.close()
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if self.exited.done():
                return
            if number is not None:
                self.kill(number)
            await asyncio.wait([self.exited], timeout=REAPED if number is signal.SIGKILL else LEAVE)
        if not self.exited.done():
            self.log.error("process %d does not end even when killed and was left", self.pid)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; nothing happens once it has ended."""
        if not self.exited.done():
            os.kill(self.pid, number)

    # Its words

    def _listen(self) -> None:
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._loop.add_reader(self._process.stdout.fileno(), self._read)

    def _read(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.closed:
            return
        try:
            chunk = os.read(self._process.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if self._rest and (not chunk or len(self._rest) > KEPT_WIDTH):
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            text = line[:KEPT_WIDTH].decode("utf-8", errors="replace").rstrip()
            if text:
                self.lines.append(text)
                self.log.warning("process %d: %s", self.pid, text)
        if not chunk:
            self._close_output()

    def _close_output(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.closed:
            self._loop.remove_reader(self._process.stdout.fileno())
            self._process.stdout.close()

    # Its end

    def _watch(self) -> None:
        """Hear of the end without polling and without a signal handler, which belongs to the whole process."""
        if not hasattr(os, "pidfd_open"):
            threading.Thread(target=self._wait, name=f"asyncio-wait-{self.pid}", daemon=True).start()
            return
        handle = os.pidfd_open(self.pid)

        def ended() -> None:
            self._loop.remove_reader(handle)
            os.close(handle)
            self._reap()

        self._loop.add_reader(handle, ended)

    def _wait(self) -> None:
        """In a thread, where the system has no `pidfd`."""
        self._process.wait()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._reap)

    def _reap(self) -> None:
        if self._process.returncode is None:  # until it is reaped, the number is its own
            with contextlib.suppress(ProcessLookupError, PermissionError):  # there is nothing but itself, which is dead
                os.killpg(self.pid, signal.SIGKILL)  # what it has left behind
        code = self._process.wait()
        self._read()  # its last words
        self._close_output()
        if not self.exited.done():
            self.exited.set_result(code)


def _start(link: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own interpreter and our own code
        [sys.executable, "-P", "-u", "-c", BOOTSTRAP, str(os.getpid()), *sys.path],
        stdin=link.fileno(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={name: value for name, value in os.environ.items() if name != "MICROKERNEL_TOKEN"},
        start_new_session=True,  # Ctrl-C at the terminal is for the node, which then stops its services
    )


def ending(pid: int, code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"process {pid} ended with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"process {pid} was ended by {name}"
