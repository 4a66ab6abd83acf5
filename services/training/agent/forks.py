"""The processes that a fork server has made for us: asked for, sent signals, and heard of when they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections import deque
from collections.abc import Sequence

from microkernel.errors import Unavailable
from services.training.forkserver import ENDED, NOTICE, wanted

__all__ = ["Forked", "Forks"]


class Forked:
    """A process. `ended` is its status, below 0 the signal that killed it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; nothing once it has ended."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it now, also where it is stopped."""
        self.send(signal.SIGKILL)

    async def end(self) -> int:
        """Kill it, and wait until it is gone; its status."""
        self.kill()
        return await asyncio.shield(self.ended)


class Forks:
    """A fork server's end of the line. Once that has gone, all its processes have ended."""

    def __init__(self, link: socket.socket) -> None:
        """`link` leads to a process that runs `serve`; it is closed with this."""
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._asked: deque[asyncio.Future[Forked]] = deque()
        self._living: dict[int, Forked] = {}
        self._buffer = b""
        self._gone = False
        link.setblocking(False)
        self._loop.add_reader(link, self._read)

    async def fork(self, descriptors: Sequence[int]) -> Forked:
        """A new process that has copies of the descriptors. Raises `Unavailable` where the server has gone."""
        answer: asyncio.Future[Forked] = self._loop.create_future()
        if self._gone:
            raise _gone()
        try:
            wanted(self._link, descriptors)  # a byte: it does not block as long as few are asked for at a time
        except OSError as error:
            raise _gone() from error
        self._asked.append(answer)
        return await answer

    async def close(self) -> None:
        """Kill all its processes, and let the server end."""
        for forked in tuple(self._living.values()):
            forked.kill()
        living = [forked.ended for forked in self._living.values()]
        if living:
            await asyncio.wait(living)
        self._leave()

    def _read(self) -> None:
        try:
            chunk = self._link.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._leave()
            return
        self._buffer += chunk
        while len(self._buffer) >= NOTICE.size:
            kind, pid, status = NOTICE.unpack_from(self._buffer)
            self._buffer = self._buffer[NOTICE.size :]
            if kind == ENDED:
                self._ended(pid, status)
            else:
                self._living[pid] = forked = Forked(pid)
                if self._asked and not (answer := self._asked.popleft()).done():
                    answer.set_result(forked)
                else:
                    forked.kill()  # whoever asked does not wait for it any more

    def _ended(self, pid: int, status: int) -> None:
        forked = self._living.pop(pid, None)
        if forked is not None and not forked.ended.done():
            forked.ended.set_result(status)

    def _leave(self) -> None:
        if self._gone:
            return
        self._gone = True
        self._loop.remove_reader(self._link)
        self._link.close()
        for answer in self._asked:
            if not answer.done():
                answer.set_exception(_gone())
        for pid in tuple(self._living):
            self._ended(pid, -signal.SIGKILL)


def _gone() -> Unavailable:
    return Unavailable("the process that training forks its workers from has gone", retry_after=1.0)
