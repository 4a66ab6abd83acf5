"""`POST /v1/chat/completions`: one answer, whole or as a stream of events.

The first piece of an answer means that it was admitted. Until then an error is an HTTP error, so it is awaited before
any header goes out; after it an error is an event of the stream, which then ends without `[DONE]`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web

from microkernel.errors import Internal, Invalid, MicrokernelError, NotFound, Unavailable, from_exception
from microkernel.message import convert
from services.gateway.bodies import Bodies
from services.gateway.door import visitor_of
from services.gateway.errors_http import answer_for
from services.gateway.models_route import model_not_found
from services.gateway.openai_answer import KEEP_ALIVE, ChunkWriter, completion_json, event, usage_of
from services.gateway.openai_request import ChatRequest, parse_chat
from services.gateway.read_ahead import ReadAhead
from services.gateway.settings import GatewaySettings
from services.inference.messages import Piece

__all__ = ["ChatRoute"]

PARSE_IN_THREAD = 1 << 20  # bytes: checking more than this would hold up the loop for milliseconds
PARSERS = 2  # long bodies checked at a time: each holds Python's lock for much of its time


class ChatRoute:
    """Answers chats, and knows which answers are being given."""

    def __init__(self, settings: GatewaySettings, bodies: Bodies, log: logging.Logger) -> None:
        self._settings = settings
        self._bodies = bodies
        self._log = log
        self._open: set[ReadAhead] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._parsers = ThreadPoolExecutor(PARSERS, thread_name_prefix="gateway-parser")

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One chat request."""
        visitor = visitor_of(request)
        async with self._bodies.read(request, limit=self._settings.chat_body_limit, setting="chat_body_limit") as body:
            if len(body) > PARSE_IN_THREAD:
                asked = await asyncio.get_running_loop().run_in_executor(self._parsers, parse_chat, body)
            else:
                asked = parse_chat(body)
        stream = visitor.port.stream("inference.chat", asked.to_chat(visitor.identity.user), trace=visitor.trace)
        async with ReadAhead(stream) as pieces:
            self._begun(pieces)
            try:
                answer = _Answer(asked, _pieces(await pieces.take()))
                if asked.stream:
                    return await self._streamed(request, answer, pieces)
                return await _whole(answer, pieces)
            except NotFound as error:
                return await model_not_found(visitor, error)
            except Invalid as error:
                error.field = asked.field_of(error.field)
                raise
            finally:
                self._ended(pieces)

    async def drain(self, seconds: float) -> None:
        """Let what runs end for `seconds`, then end it with `UNAVAILABLE`."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            reason = Unavailable("the gateway stops", service="gateway", retry_after=1.0, may_have_run=True)
            for pieces in tuple(self._open):
                pieces.interrupt(reason)

    async def close(self) -> None:
        """End the threads that check long bodies; nothing is answered afterwards."""
        await asyncio.to_thread(self._parsers.shutdown, cancel_futures=True)

    async def _streamed(self, request: web.Request, answer: _Answer, pieces: ReadAhead) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        await response.prepare(request)
        chunks = ChunkWriter(
            answer_id=answer.id,
            model=answer.model,
            created=answer.created,
            include_usage=answer.asked.includes_usage,
            answers=answer.asked.n or 1,
            tier=answer.asked.tier,
        )
        ended: list[Piece] = []
        out = chunks.opening()
        said: list[Piece] | None = answer.first
        try:
            while said is not None:
                out += b"".join(map(chunks.piece, said)) if said else KEEP_ALIVE
                ended += [piece for piece in said if piece.finish_reason is not None]
                if not await self._write(request, response, out):
                    return response
                out = b""
                ready = await pieces.take(self._settings.keepalive_seconds)
                said = None if ready is None else _pieces(ready)
            out = chunks.closing(usage_of(_finished(ended, answer.asked)))
        except ConnectionError:
            raise  # the reader is gone
        except MicrokernelError as error:
            error.field = answer.asked.field_of(error.field)
            out = event(answer_for(error).json())
        except Exception as error:  # noqa: BLE001 - a defect: logged, and told as one
            self._log.exception("%s raised %s in mid-stream", request.path, type(error).__name__)
            out = event(answer_for(from_exception(error, service="gateway")).json())
        if await self._write(request, response, out):
            await response.write_eof()
        return response

    async def _write(self, request: web.Request, response: web.StreamResponse, out: bytes) -> bool:
        """Send `out`; False if the reader takes nothing and was cut."""
        seconds = self._settings.slow_reader_seconds
        try:
            async with asyncio.timeout(seconds):
                if out:
                    await response.write(out)
        except TimeoutError:
            self._log.warning("slow reader of %s: %d bytes pending for %g s, cut", request.path, len(out), seconds)
            if request.transport is not None:
                request.transport.abort()
            return False
        return True

    def _begun(self, pieces: ReadAhead) -> None:
        self._open.add(pieces)
        self._idle.clear()

    def _ended(self, pieces: ReadAhead) -> None:
        self._open.discard(pieces)
        if not self._open:
            self._idle.set()


class _Answer:
    """What is the same in everything that is said about one answer."""

    def __init__(self, asked: ChatRequest, first: list[Piece]) -> None:
        self.asked = asked
        self.first = first
        self.id = "chatcmpl-" + secrets.token_hex(12)
        self.created = int(time.time())
        self.model = first[0].model or asked.model or ""


async def _whole(answer: _Answer, pieces: ReadAhead) -> web.Response:
    said = list(answer.first)
    while (ready := await pieces.take()) is not None:
        said += _pieces(ready)
    _finished([piece for piece in said if piece.finish_reason is not None], answer.asked)
    body = completion_json(
        answer_id=answer.id, model=answer.model, created=answer.created, pieces=said, tier=answer.asked.tier
    )
    return web.Response(body=body, content_type="application/json")


def _pieces(ready: list[Any] | None) -> list[Piece]:
    if ready is None:
        raise Internal("the answer ended before it began", service="inference")
    return [convert(piece, Piece, what="inference.chat") for piece in ready]


def _finished(ended: list[Piece], asked: ChatRequest) -> list[Piece]:
    """The last pieces, one of each answer that was asked for."""
    if len(ended) != (asked.n or 1):
        raise Internal("the answer broke off without a reason", service="inference")
    return ended
