"""A web server on loopback that counts what it is asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from hashlib import sha256
from urllib.parse import unquote

from aiohttp import web


class WebServer:
    """Files by path. `parts`: whether it sends parts; `marks`: whether it tells versions; `hold` keeps answers
    back; without `keep_alive` no task of it waits for another question."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()  # by method
        self.ranges: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.parts = True
        self.marks = True
        self.status = 0
        self.keep_alive = True
        self.hold: asyncio.Event | None = None
        self.begun = asyncio.Event()
        self.given_up = 0
        self.url = ""

    async def __aenter__(self) -> WebServer:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_) -> None:
        if self.hold is not None:
            self.hold.set()
        await self._runner.cleanup()

    def etag(self, path: str) -> str:
        return f'"{sha256(self.files[path]).hexdigest()[:16]}"'

    async def _answer(self, request: web.Request) -> web.Response:
        answer = await self._found(request)
        if not self.keep_alive:
            answer.force_close()
        return answer

    async def _found(self, request: web.Request) -> web.Response:
        self.asked[request.method] += 1
        self.headers.append(dict(request.headers))
        path = unquote(request.rel_url.raw_path)
        if self.status:
            return web.Response(status=self.status, headers={"Retry-After": "7"})
        if request.method == "GET" and self.hold is not None:
            self.begun.set()
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.given_up += 1
                raise
        if path not in self.files:
            return self._folder(path)
        content = self.files[path]
        headers = {"ETag": self.etag(path)} if self.marks else {}
        asked = request.headers.get("Range")
        if request.method == "GET" and asked:
            self.ranges.append(asked)
        if asked is None or not self.parts or request.method == "HEAD":
            return web.Response(body=content, headers=headers)
        start, stop = asked.removeprefix("bytes=").split("-")
        part = content[int(start) : int(stop) + 1]
        headers["Content-Range"] = f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}"
        return web.Response(status=206, body=part, headers=headers)

    def _folder(self, path: str) -> web.Response:
        above = path.rstrip("/") + "/"
        below = [each[len(above) :] for each in self.files if each.startswith(above)]
        if not below:
            return web.Response(status=404)
        if not path.endswith("/"):
            return web.Response(status=301, headers={"Location": path + "/"})
        names = {name.split("/")[0] + ("/" if "/" in name else "") for name in below}
        links = "".join(f'<a href="{each}">{each}</a>' for each in sorted(names))
        return web.Response(text=f'<html><a href="../">up</a>{links}</html>', content_type="text/html")
