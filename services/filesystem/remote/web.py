"""A web server's files: names are percent-encoded once, and a server that sends no parts is read as a stream.

A server is not trusted with the size of what it sends: no more is read than was asked for. What it says of a file in an
answer is compared with what it said before, so that parts of two versions are never put together.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping
from email.utils import parsedate_to_datetime
from html import unescape
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from aiohttp import ClientTimeout

from microkernel.errors import Invalid, NotFound, Unavailable
from services.filesystem.remote.distant import DistantStore
from services.filesystem.remote.faults import changed_meanwhile, faults_named
from services.filesystem.remote.store import Found, Names, NoParts, is_name, mark_of
from services.filesystem.volume import CHUNK

__all__ = ["WebStore"]

PLAIN = {"Accept-Encoding": "identity"}  # parts of what is packed fit nothing
OF_A_VERSION = ("ETag", "Last-Modified", "Content-MD5", "Digest")
AHEAD = 4  # pieces of a stream that wait for their reader


class WebStore(DistantStore):
    """What is below a URL of `http://` or `https://`; folders are what a server shows as lists of links."""

    _parts = True  # until it has sent a whole file where a part was asked for

    async def find(self, names: Names) -> Found:
        if not names:
            return Found("", folder=True)
        path = await self._path(names)
        try:
            told = await self._ask(names, "info", path)
        except NotFound:
            told = await self._ask(names, "info", path + "/")  # a folder, to a server that does not say so
            return Found(names[-1], folder=True)
        if urlsplit(str(told.get("url", ""))).path.endswith("/") and told.get("mimetype") == "text/html":
            return Found(names[-1], folder=True)
        return self._found(names[-1], told)

    async def list(self, names: Names) -> list[Found]:
        if names and not (await self.find(names)).folder:
            raise Invalid(f"{self._shown(names)} is a file", field="path")
        url = (await self._path(names)).rstrip("/") + "/"
        listed = await self._ask(names, "ls", url, detail=True)
        found: dict[str, Found] = {}
        for each in listed:
            link = unescape(str(each["name"]))
            if not link.startswith(url):
                continue
            rest = link[len(url) :].removeprefix("./")
            name = unquote(rest.rstrip("/"), errors="replace")
            if "?" not in rest and "#" not in rest and rest.rstrip("/").count("/") == 0 and is_name(name):
                found[name] = Found(name, folder=rest.endswith("/"))
        return list(found.values())

    async def fetch(self, names: Names, found: Found, start: int, stop: int) -> bytes:
        fs = await self._open(names)
        url = await self._path(names)

        async def get() -> bytes:
            async with await self._get(fs, url, {"Range": f"bytes={start}-{stop - 1}"}) as answer:
                self._check_answer(answer, names, found)
                if answer.status != 206 and start:
                    self._parts = False
                    raise NoParts(f"the server of {self._shown(names)} sends whole files only")
                if answer.status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                    raise Unavailable(f"the server sends another part of {self._shown(names)} than was asked for")
                content = bytearray()
                async for piece in answer.content.iter_chunked(CHUNK):
                    content += piece
                    if len(content) >= stop - start:
                        break
                return bytes(content[: stop - start])

        with faults_named(self._shown(names), self._address, self._secrets):
            content: bytes = await self.on_its_loop(get, times=math.inf)
            return content

    async def stream(self, names: Names, found: Found, start: int) -> AsyncGenerator[bytes, None]:
        fs = await self._open(names)
        url = await self._path(names)
        loop = asyncio.get_running_loop()
        room = asyncio.Semaphore(AHEAD)
        pieces: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def hand(piece: bytes | None) -> None:
            await room.acquire()
            pieces.put_nowait(piece)

        async def get() -> None:
            skip = start
            async with await self._get(fs, url, {}) as answer:
                self._check_answer(answer, names, found)
                async for piece in answer.content.iter_chunked(CHUNK):
                    dropped = min(skip, len(piece))
                    skip -= dropped
                    if dropped < len(piece):
                        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(hand(piece[dropped:]), loop))

        async def read() -> None:
            with faults_named(self._shown(names), self._address, self._secrets):
                await self.on_its_loop(get, times=math.inf)
            pieces.put_nowait(None)

        reading = asyncio.create_task(read(), name="mount stream")
        coming = asyncio.ensure_future(pieces.get())
        try:
            while True:
                await asyncio.wait([coming, reading], timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    await reading
                if not coming.done():
                    if reading.done():
                        continue
                    raise Unavailable(f"the server of {self._shown(names)} sent nothing for {self._timeout:g} s")
                room.release()
                piece = coming.result()
                if piece is None:
                    return
                coming = asyncio.ensure_future(pieces.get())
                yield piece
        finally:
            coming.cancel()
            reading.cancel()
            await asyncio.wait([reading, coming])

    async def close(self) -> None:
        session = None if self._fs is None else self._fs._session  # noqa: SLF001 - nothing else closes it in time
        if session is not None:
            await self.on_its_loop(session.close)
        await super().close()

    async def _path(self, names: Names) -> str:
        await self._open(names)
        return "/".join([self._root.rstrip("/"), *(quote(name, safe="") for name in names)])

    async def _get(self, fs: Any, url: str, headers: Mapping[str, str]) -> Any:
        """An answer of which nothing has been read, on fsspec's loop."""
        session = await fs.set_session()
        fields = dict(fs.kwargs)
        fields["headers"] = {**fields.get("headers", {}), **PLAIN, **headers}
        # Not a limit on the whole, which may be large, but on how long nothing comes.
        fields["timeout"] = ClientTimeout(total=None, sock_connect=self._timeout, sock_read=self._timeout)
        answer = await session.get(fs.encode_url(url), **fields)
        if answer.status >= 400:
            answer.close()
            answer.raise_for_status()
        return answer

    def _check_answer(self, answer: Any, names: Names, found: Found) -> None:
        told = {name: answer.headers[name] for name in OF_A_VERSION if answer.headers.get(name)}
        whole = answer.headers.get("Content-Length")
        if answer.status == 206:
            whole = str(answer.headers.get("Content-Range", "")).rpartition("/")[2]
        size = int(whole) if whole is not None and whole.isdecimal() else None
        if found.size is not None and size is not None and size != found.size:
            raise changed_meanwhile(self._shown(names))
        if found.mark is not None and _mark(told, found.size) != found.mark:
            raise changed_meanwhile(self._shown(names))

    def _found(self, name: str, told: Mapping[str, Any]) -> Found:
        size = told.get("size")
        modified = told.get("Last-Modified")
        return Found(
            name,
            folder=False,
            size=size if isinstance(size, int) else None,
            modified=_seconds(str(modified)) if modified else None,
            mark=_mark(told, size),
            ranges=self._parts and told.get("partial") is not False,
        )


def _mark(told: Mapping[str, Any], size: Any) -> str | None:
    return mark_of({"size": size, **{name: told[name] for name in OF_A_VERSION if name in told}})


def _seconds(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None
