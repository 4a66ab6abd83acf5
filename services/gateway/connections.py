"""The connections of the HTTP side: how many there may be, and that none is left when the gateway has stopped."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from services.gateway.errors_http import REQUEST, ErrorAnswer, ErrorBody, error_response

__all__ = ["Connections"]

FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 26\r\nConnection: close\r\n\r\ntoo many connections here\n"
)


class Connections:
    """Makes the protocol of each connection, for `loop.create_server`; `options` are those of aiohttp's handler."""

    def __init__(self, server: web.Server, *, limit: int, **options: Any) -> None:
        self._server = server
        self._limit = limit
        self._options = options
        self._tasks: set[asyncio.Task[Any]] = set()

    def __call__(self) -> asyncio.Protocol:
        """The protocol of one more connection."""
        if len(self._server.connections) >= self._limit:
            return _Refusal()
        return _Connection(self._server, self._tasks, self._options)

    async def ended(self, seconds: float) -> int:
        """Wait for the tasks of connections that were closed; returns how many have not ended after `seconds`.

        aiohttp cancels them and does not wait.
        """
        await asyncio.sleep(0)  # one that was cancelled before its first step is not in the set
        if not self._tasks:
            return 0
        _, late = await asyncio.wait(set(self._tasks), timeout=seconds)
        return len(late)


class _Connection(web.RequestHandler):
    """aiohttp's handler of a connection, whose task is known to us."""

    __slots__ = ("_ours",)

    def __init__(self, server: web.Server, tasks: set[asyncio.Task[Any]], options: dict[str, Any]) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._ours = tasks

    async def start(self) -> None:
        """Serve the connection until it is closed."""
        task = asyncio.current_task()
        assert task is not None
        self._ours.add(task)
        task.add_done_callback(self._ours.discard)
        await super().start()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP. Only its kind is logged: what strangers send is noise, and may hold a token."""
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        self.logger.debug("%s sent what is not HTTP: %s", request.remote, type(exc).__name__)
        sentence = (message or "the request is not HTTP").partition("\n")[0][:200]
        response = error_response(ErrorAnswer(status, ErrorBody(sentence, REQUEST, None, "bad_request")))
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log a defect. That a body breaks off or is not what its encoding says is none, and was answered."""
        error = kw.get("exc_info")
        if isinstance(error, RequestPayloadError):
            self.logger.debug("a body cannot be read: %s", type(error).__name__)
            return
        super().log_exception(*args, **kw)


class _Refusal(asyncio.Protocol):
    """Stands for the handler of a connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say so and hang up."""
        writing = cast("asyncio.WriteTransport", transport)  # uvloop's is one in deed, not in name
        writing.write(FULL)
        writing.close()
