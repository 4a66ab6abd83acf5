"""Reads the bodies of requests, bounded in size, in time, and in what all of them take together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from microkernel.errors import Invalid, Overloaded, TooBig

__all__ = ["Bodies"]


class Bodies:
    """`limit` bytes a body and `total` for all at a time, each within `seconds`. Sizes are those after unpacking."""

    def __init__(self, *, limit: int, total: int, seconds: float) -> None:
        self._limit = limit
        self._total = total
        self._seconds = seconds
        self.held = 0

    @asynccontextmanager
    async def read(self, request: web.Request, *, limit: int, setting: str) -> AsyncIterator[bytearray]:
        """The JSON body of `request`; it counts as held inside the `async with`.

        `limit` is the route's own, in bytes, and `setting` the name of what sets it.

        Raises `TooBig`, `Overloaded`, `Invalid`, and aiohttp's own refusals for what is not JSON or comes too slowly.
        """
        kind = request.content_type
        if kind != "application/json" and not kind.endswith("+json"):
            raise web.HTTPUnsupportedMediaType(
                text=f"the body is '{kind[:64]}', not JSON (send 'Content-Type: application/json')"
            )
        if self._limit < limit:
            limit, setting = self._limit, "body_limit"
        too_big = TooBig(f"the body is bigger than {limit} bytes", remedy=f"{setting} sets it")
        if request.content_length is not None and request.content_length > limit:
            raise too_big
        body = bytearray()
        try:
            await self._fill(body, request, limit, too_big)
            yield body
        finally:
            self.held -= len(body)

    async def _fill(self, body: bytearray, request: web.Request, limit: int, too_big: TooBig) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                async for chunk in request.content.iter_any():
                    body += chunk
                    self.held += len(chunk)
                    if len(body) > limit:
                        raise too_big
                    if self.held > self._total:
                        raise Overloaded(f"{self.held >> 20} MiB of requests are being read", retry_after=1.0)
        except TimeoutError as error:
            raise web.HTTPRequestTimeout(
                text=f"the body did not come within {self._seconds:g} s: {len(body)} bytes did"
            ) from error
        except (RequestPayloadError, HttpProcessingError) as error:
            raise Invalid(f"the body cannot be read: {error}") from error
