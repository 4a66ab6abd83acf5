"""One server, talked with over HTTP (hot: once a read of its answer).

An answer is read no faster than it is asked for: the connection's buffer fills, and then the server waits. Closing the
generator closes the connection, which is how such servers learn that nobody listens any more.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from io import BytesIO
from urllib.parse import urlsplit

import aiohttp

from drivers.upstream.answer import Answer
from drivers.upstream.dialects import DIALECTS, Dialect
from drivers.upstream.errors_http import error_of
from drivers.upstream.events import BadAnswer, EventReader
from drivers.upstream.health import Health
from drivers.upstream.key import Key
from drivers.upstream.listing import Listing, listing_of
from drivers.upstream.request import body_of, path_of
from drivers.upstream.settings import DRIVER, ServerSettings
from microkernel.driver import DeviceFacts
from microkernel.errors import (
    Code,
    MicrokernelError,
    NotFound,
    Overloaded,
    PreconditionFailed,
    Unavailable,
)
from microkernel.model_server import Generate, Generated, ModelServer, ServedModel

__all__ = ["Server"]

READ = 64 << 10  # bytes that wait to be read; at twice as many the server has to wait
MOST_BYTES = 64 << 20  # of an answer
MOST_OF_ERROR = 64 << 10
MOST_OF_LIST = 4 << 20
LOOK_TIMEOUT = 5.0  # seconds beyond connecting
AFTER_THE_END = 2.0  # seconds in which the count of tokens follows the last piece
# Servers close what rests for longer: uvicorn, which most of them are made with, after 5 s.
KEEP_ALIVE = 4.0
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

log = logging.getLogger("microkernel.drivers.upstream")


class Server(ModelServer):
    """A server with OpenAI's API as a device."""

    def __init__(self, settings: ServerSettings) -> None:
        """Nothing is asked yet."""
        self.weight = settings.weight
        self.queue = settings.queue
        self._settings = settings
        self._url = settings.url.rstrip("/")
        self._key = Key(env=settings.key_env, file=settings.key_file)
        self._health = Health(settings.look_seconds, time.monotonic)
        self._dialect: Dialect = DIALECTS["openai" if settings.dialect == "auto" else settings.dialect]
        self._models: tuple[ServedModel, ...] = tuple(ServedModel(name=name) for name in settings.models)
        self._running = 0
        self._looking = asyncio.Lock()
        self._heard_at = -math.inf
        self._http: aiohttp.ClientSession | None = None
        self.facts = self._facts()

    @property
    def places(self) -> int:
        """One while it is on trial, or where its kind has one at a time."""
        one = self._health.on_trial or self._dialect.one_at_a_time
        return 1 if one else self._settings.concurrency

    @property
    def models(self) -> Sequence[ServedModel]:
        """As it listed them last."""
        return self._models

    def fault(self) -> str | None:
        """What the last look, or the last answer, has met."""
        return self._health.fault()

    def lost(self) -> str | None:
        """That it does not answer, or that its answers break."""
        return self._health.lost()

    async def open(self) -> None:
        """Make a session; nothing is asked yet."""
        parts = urlsplit(self._url)
        if parts.scheme == "http" and self._key.source is not None and parts.hostname not in LOOPBACK:
            log.warning("%s: its key goes to %s without encryption", self._settings.name, parts.hostname)
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._settings.connect_seconds),
            auto_decompress=False,  # a few bytes could become as many as there is memory
            read_bufsize=READ,
            headers={"Accept-Encoding": "identity", "User-Agent": "microkernel"},
        )

    async def close(self) -> None:
        """End the session and what is open of it."""
        if self._http is not None:
            await self._http.close()

    async def look(self) -> float:
        """Read the key again, and ask for the list of models; one that is heard to answer is not disturbed."""
        began = time.monotonic()
        heard = began - self._heard_at < self._settings.look_seconds
        if self._running and (heard or self._dialect.one_at_a_time):
            return self._settings.look_seconds
        why: str | None = None
        try:
            if await asyncio.to_thread(self._key.read):
                self._health.changed()
            async with asyncio.timeout(self._settings.connect_seconds + LOOK_TIMEOUT), self._looking:
                await self._list()
        except (MicrokernelError, BadAnswer, aiohttp.ClientError, OSError) as error:  # the last includes TimeoutError
            why = self._said(error)
        self._health.looked(why, time.monotonic() - began)
        return self._health.next_look()

    async def generate(self, ask: Generate) -> AsyncGenerator[Generated, None]:
        """The answer, piece by piece."""
        body = body_of(ask, self._dialect)
        if self._dialect.one_at_a_time:
            async with self._looking:  # a look that is under way would end the answer
                self._running += 1
        else:
            self._running += 1
        try:
            async with aclosing(self._pieces(ask, body)) as pieces:
                async for piece in pieces:
                    if piece.finish_reason is not None:
                        self._health.answered()
                    yield piece
        except (MicrokernelError, BadAnswer, aiohttp.ClientError, OSError) as error:
            told = self._told(error)
            self._note(told)
            raise told from None  # its sentence says it all, and a library's error may hold the headers that were sent
        finally:
            self._running -= 1

    async def _pieces(self, ask: Generate, body: bytes) -> AsyncGenerator[Generated, None]:
        settings = self._settings
        ends = time.monotonic() + settings.total_seconds
        async with self._asked(ask, body) as response:
            yield Generated()
            answer, events, size = Answer(wants_logprobs=ask.logprobs is not None), EventReader(), 0
            wait = settings.first_seconds
            while not answer.done:
                rest = answer.finished  # all but the count of tokens is there
                chunk = await (self._rest(response) if rest else self._read(response, wait, ends))
                self._heard_at = time.monotonic()
                size += len(chunk)
                if size > MOST_BYTES:
                    raise BadAnswer(f"an answer is longer than {MOST_BYTES} bytes")
                for data in events.feed(chunk) if chunk else events.end():
                    piece = answer.push(data)
                    if piece is not None:
                        wait = settings.idle_seconds
                        yield piece
                if not chunk:
                    break
            yield answer.last()
            if answer.done:  # what follows is the end of the response, after which its connection can be used again
                await self._rest(response)

    @asynccontextmanager
    async def _asked(self, ask: Generate, body: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response to a request, once the server has taken it. Raises what it refuses it with."""
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream", **self._key.headers()}
        try:
            async with asyncio.timeout(self._settings.first_seconds):
                response = await self._post(self._url + path_of(ask), body, headers)
        except aiohttp.ServerTimeoutError:
            raise  # there is no connection
        except TimeoutError as error:
            seconds = self._settings.first_seconds
            raise Unavailable(f"it did not take the request within {seconds:g} s", may_have_run=True) from error
        try:
            if response.status != 200:
                raise await self._refusal(response, ask.model)
            if response.content_type != "text/event-stream":
                raise BadAnswer(f"it answers with {response.content_type[:80]!r} and no stream of events")
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise BadAnswer("it answers in a coding that it was not asked for")
            yield response
        finally:
            response.close()  # nothing, where it was read to its end

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> aiohttp.ClientResponse:
        assert self._http is not None
        try:
            return await self._http.post(url, data=BytesIO(body), headers=headers, allow_redirects=False)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                raise
            # As a rule it closed a connection that had rested, just as we took it up. At worst it begins twice.
            return await self._http.post(url, data=BytesIO(body), headers=headers, allow_redirects=False)

    async def _read(self, response: aiohttp.ClientResponse, wait: float, ends: float) -> bytes:
        """What is there, once there is something; nothing at the end. Raises `Unavailable` after `wait` seconds."""
        left = ends - time.monotonic()
        try:
            async with asyncio.timeout(min(wait, left)):
                return await response.content.readany()
        except TimeoutError as error:
            why = f"it was silent for {wait:g} s" if wait < left else "its answer took longer than it may"
            raise Unavailable(why, may_have_run=True) from error

    async def _rest(self, response: aiohttp.ClientResponse) -> bytes:
        """What follows the last piece; nothing where it does not come soon."""
        try:
            async with asyncio.timeout(AFTER_THE_END):
                return await response.content.readany()
        except (TimeoutError, aiohttp.ClientError, OSError):
            return b""

    async def _refusal(self, response: aiohttp.ClientResponse, model: str = "") -> MicrokernelError:
        """What an answer that is none says."""
        try:
            async with asyncio.timeout(LOOK_TIMEOUT):
                body = await _all(response, MOST_OF_ERROR)
        except (TimeoutError, BadAnswer, aiohttp.ClientError):
            body = b""
        return error_of(response.status, response.headers, body, model=model, key=self._key.source)

    async def _list(self) -> None:
        """Ask for its models. A server that has no list, and whose models are named, is well all the same."""
        assert self._http is not None
        async with self._http.get(
            self._url + "/models", headers=self._key.headers(), allow_redirects=False
        ) as response:
            if response.status == 429 or (response.status in {404, 405} and self._settings.models):
                return
            if response.status != 200:
                raise await self._refusal(response)
            self._learn(listing_of(await _all(response, MOST_OF_LIST)))

    def _learn(self, listing: Listing) -> None:
        wanted = self._settings.models
        there = {model.name: model for model in listing.models}
        self._models = tuple(there[name] for name in wanted if name in there) if wanted else listing.models
        if self._settings.dialect == "auto" and listing.dialect is not self._dialect:
            self._dialect = listing.dialect
            self.facts = self._facts()

    def _facts(self) -> DeviceFacts:
        title = f"{self._dialect.title} at {self._url}"
        return DeviceFacts(name=self._settings.name, kind=DRIVER, model=title, cores=0, threads=0, memory_bytes=0)

    def _said(self, error: Exception) -> str:
        """An error in a sentence for people, without the key."""
        if isinstance(error, MicrokernelError):
            return self._key.hidden(error.message)
        if isinstance(error, aiohttp.ClientConnectorError):
            reason = error.os_error.strerror or str(error.os_error) or type(error.os_error).__name__
            return f"no connection: {reason}"
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return f"no connection within {self._settings.connect_seconds:g} s"
        if isinstance(error, TimeoutError):
            return f"it did not tell its models within {self._settings.connect_seconds + LOOK_TIMEOUT:g} s"
        if isinstance(error, aiohttp.ClientPayloadError):
            return "the connection broke off"
        if isinstance(error, aiohttp.ClientResponseError):
            return self._key.hidden(f"what it answers is no HTTP: {_short(error.message)}")
        return self._key.hidden(_short(str(error)) or type(error).__name__)

    def _told(self, error: Exception) -> MicrokernelError:
        """An error of an answer as ours."""
        said = self._said(error)
        if isinstance(error, MicrokernelError):
            return type(error)(
                said,
                remedy=error.remedy,
                field=error.field,
                retry_after=error.retry_after,
                may_have_run=error.may_have_run,
            )
        connected = not isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        return Unavailable(said, may_have_run=connected)

    def _note(self, error: MicrokernelError) -> None:
        """What an answer's end says of the server: nothing where only the request was wrong, or it has too many."""
        if isinstance(error, PreconditionFailed):
            self._health.failed(error.message, lasting=True)
        elif error.code in {Code.UNAVAILABLE, Code.INTERNAL}:
            self._health.failed(error.message)
        elif not isinstance(error, NotFound | Overloaded):
            self._health.answered()


def _short(text: str) -> str:
    """The first line of what a library says."""
    return text.partition("\n")[0].rstrip(":")[:200]


async def _all(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The whole body. Raises `BadAnswer` where it is longer than `most` bytes."""
    parts, size = [], 0
    while chunk := await response.content.readany():
        size += len(chunk)
        if size > most:
            raise BadAnswer(f"it answers with more than {most} bytes")
        parts.append(chunk)
    return b"".join(parts)
