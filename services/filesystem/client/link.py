"""The link of one file system object to its node: opened by the first call, closed at the end of the process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import weakref
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Any
from uuid import uuid4

from microkernel.client import Stream, System, connect
from services.filesystem.posix import os_errors

__all__ = ["AHEAD", "Link", "is_ending"]

AHEAD = 16  # pieces of a file that come before they are asked for: 4 MiB
PATIENCE = 600.0  # seconds for a change, as of a folder with all that is in it
FAREWELL = 2.0  # seconds that the end of a process waits for its links to close

_open_links: weakref.WeakSet[Link] = weakref.WeakSet()
_of_parent: list[Any] = []  # what a fork has brought along: closing it here would end it there
_ending: list[bool] = []  # whether the process ends: nothing runs on its loops any more


class Link:
    """Calls to one node, whose errors are `OSError`s. It belongs to the loop that uses it: another one has its own."""

    def __init__(self, address: str | None, token: str | None, root: Path | None, cafile: str | Path | None) -> None:
        """As `microkernel.connect` takes them."""
        self._address = address
        self._token = token
        self._root = root
        self._cafile = cafile
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        self._opens = asyncio.Lock()
        self._connection: AbstractAsyncContextManager[System] | None = None
        self._system: System | None = None
        self._closing: asyncio.Task[None] | None = None

    async def system(self) -> System:
        """The node, over a link that is opened where there is none. Raises `MicrokernelError`."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop or self._pid != os.getpid():
            self._begin(loop)
        system = self._system
        if system is None or system.is_over:
            async with self._opens:
                system = self._system
                if system is None or system.is_over:
                    system = await self._open()
        return system

    async def call(self, what: str, path: str, **fields: Any) -> Any:
        """What `filesystem.what` answers."""
        with os_errors(path):
            system = await self.system()
            return await system.call(f"filesystem.{what}", path=path, **fields)

    async def change(self, what: str, path: str, **fields: Any) -> Any:
        """`call`, for what may take its time. Where the link is lost under it, it is asked for again, and done once."""
        return await self.call(what, path, deadline=PATIENCE, idempotency_key=uuid4().hex, **fields)

    async def pieces(
        self, path: str, start: int = 0, stop: int | None = None, version: int | str | None = None
    ) -> AsyncGenerator[bytes, None]:
        """A file's bytes as they come."""
        with os_errors(path):
            stream = await self.stream(
                "read", path, start=start, stop=stop, version=version, credit=AHEAD, result_type=bytes
            )
            async with aclosing(stream):
                async for piece in stream:
                    yield piece

    async def stream(self, what: str, path: str, **fields: Any) -> Stream:
        """The stream of `filesystem.what`; its errors, and those of opening a link, are the node's."""
        system = await self.system()
        return system.stream(f"filesystem.{what}", path=path, **fields)

    async def aclose(self) -> None:
        """Close the link; the next call opens another one."""
        connection, self._connection, self._system = self._connection, None, None
        _open_links.discard(self)
        if connection is not None and self._pid == os.getpid():
            await connection.__aexit__(None, None, None)

    def close_soon(self) -> None:
        """`aclose` from any thread, without waiting for it."""
        loop = self._loop
        if loop is None or self._system is None or self._pid != os.getpid() or not loop.is_running():
            return

        def begin() -> None:
            self._closing = loop.create_task(self.aclose())

        with contextlib.suppress(RuntimeError):  # the loop was closed in between: so is the link
            loop.call_soon_threadsafe(begin)

    def close_at_exit(self) -> None:
        """`aclose` from the thread that ends the process."""
        loop = self._loop
        if loop is not None and self._pid == os.getpid() and loop.is_running():
            with contextlib.suppress(TimeoutError, RuntimeError):
                asyncio.run_coroutine_threadsafe(self.aclose(), loop).result(FAREWELL)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """A loop that has no link yet."""
        if self._pid != os.getpid():
            _of_parent.append((self._loop, self._connection, self._system))
            self._pid = os.getpid()
        self._loop = loop
        self._opens = asyncio.Lock()
        self._connection = self._system = None

    async def _open(self) -> System:
        await self.aclose()
        # It reads files of the state folder, which may be on a slow disk.
        connection = await asyncio.to_thread(connect, self._address, self._token, root=self._root, cafile=self._cafile)
        self._system = await connection.__aenter__()
        self._connection = connection
        _open_links.add(self)
        return self._system


def is_ending() -> bool:
    """Whether the process ends, and who waits for a loop would wait for ever."""
    return bool(_ending)


@atexit.register
def _close_links() -> None:
    _ending.append(True)
    for link in list(_open_links):
        link.close_at_exit()
