"""The door of the HTTP side: who may come in, under which name, and how errors are told.

Every request gets an id and a trace, is checked for the host it was sent to (against DNS rebinding,
https://owasp.org/www-community/attacks/DNS_Rebinding), for its origin, and for its token; what comes in acts with a
port narrowed to the rights of that token. Everything that goes wrong behind it is answered in OpenAI's shape.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from microkernel.audit import Act
from microkernel.capability import LONGEST_TOKEN, Identity, Revoked
from microkernel.errors import MicrokernelError, Overloaded, Unauthenticated, Unavailable, from_exception
from microkernel.port import Port
from microkernel.rates import Rates
from microkernel.trace import Trace, new_trace, parse_traceparent
from services.gateway.errors_http import REQUEST, SERVER, ErrorAnswer, ErrorBody, answer_for, error_response
from services.gateway.listen import LOCAL_NAMES

__all__ = ["PEER", "PUBLIC", "Door", "Visitor", "visitor_of"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PUBLIC = frozenset({"/", "/livez", "/readyz", "/mk"})  # `/mk` asks for the token itself, in its first message
REQUEST_ID = web.RequestKey("request_id", str)
PEER: ContextVar[str | None] = ContextVar("gateway_peer", default=None)
"""The address that the request comes from, for the audit; also in what a websocket's request starts."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HTTP_CODES = {
    404: "unknown_url",
    405: "method_not_allowed",
    408: "request_timeout",
    415: "unsupported_media_type",
    421: "misdirected_request",
}


class Visitor(msgspec.Struct, frozen=True):
    """On whose behalf a request acts."""

    identity: Identity
    port: Port
    trace: Trace


VISITOR = web.RequestKey("visitor", Visitor)


def visitor_of(request: web.Request) -> Visitor:
    """Who asks; only on routes that are not public."""
    return request[VISITOR]


class Door:
    """What every request passes; `hosts` None takes any host name."""

    def __init__(
        self,
        port: Port,
        authenticate: Callable[[str], Awaitable[Identity | None]],
        *,
        hosts: Collection[str] | None,
        origins: Collection[str],
        rates: Rates,
        log: logging.Logger,
    ) -> None:
        self._port = port
        self._authenticate = authenticate
        self._hosts = None if hosts is None else LOCAL_NAMES | {host.lower() for host in hosts}
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)
        self._log = log
        self._rates = rates
        self._inside: dict[asyncio.Task[Any], tuple[str, ...]] = {}  # what answers signed tokens, by their ids
        self.closed = False

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let a request in, or say why not."""
        PEER.set(request.remote)
        given = request.headers.get("X-Request-Id", "")
        request[REQUEST_ID] = given if _REQUEST_ID.fullmatch(given) else "req_" + secrets.token_hex(12)
        try:
            return await self._answer(request, handler)
        except web.HTTPException as refusal:
            return error_response(self._refusal(request, refusal))
        except ConnectionError:
            raise  # nobody is there any more to be answered
        except MicrokernelError as error:
            return error_response(answer_for(error))
        except Exception as error:  # noqa: BLE001 - a defect: logged, and answered as one
            self._log.exception("%s %s raised %s", request.method, request.path, type(error).__name__)
            return error_response(answer_for(from_exception(error, service="gateway")))

    async def prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Headers that every response has."""
        response.headers["Server"] = "microkernel"
        response.headers["X-Request-Id"] = request.get(REQUEST_ID, "")
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers.update(self._cors(request))

    def revoked(self, revoked: Revoked) -> None:
        """End what is being answered for tokens that are not valid any more: their connections are closed."""
        for task, token_ids in self._inside.items():
            if revoked.ends(token_ids):
                task.cancel("the token was revoked")

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._check_host(request)
        if self._is_preflight(request):
            return web.Response(
                status=204,
                headers={
                    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
                    "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", "*"),
                    "Access-Control-Max-Age": "600",
                },
            )
        if self.closed and request.path != "/livez":
            raise Unavailable("the gateway stops", service="gateway", retry_after=1.0, may_have_run=False)
        if request.path in PUBLIC:
            return await handler(request)
        visitor = request[VISITOR] = await self._let_in(request)
        with self._answering(visitor.identity):
            return await handler(request)

    @contextmanager
    def _answering(self, identity: Identity) -> Iterator[None]:
        task = asyncio.current_task()
        if task is None or not identity.token_ids:  # the node's own token is never revoked
            yield
            return
        self._inside[task] = identity.token_ids
        try:
            yield
        finally:
            del self._inside[task]

    async def knows(self, request: web.Request) -> bool:
        """Whether a request to a public route brings a valid token all the same."""
        token = _token(request)
        try:
            return token is not None and await self._identify(token) is not None
        except MicrokernelError:
            return False  # nobody can say at this moment

    async def _identify(self, token: str) -> Identity | None:
        # Headers are bytes in any encoding; tokens are ASCII, so what is not cannot be one.
        if not token.isascii() or len(token) > LONGEST_TOKEN:
            self._port.denied(Act.AUTHENTICATE, "token", "it cannot be a token", peer=PEER.get())
            return None
        return await self._authenticate(token)

    async def _let_in(self, request: web.Request) -> Visitor:
        token = _token(request)
        if token is None:
            self._port.denied(Act.AUTHENTICATE, request.path, "no token was given", peer=request.remote)
            raise Unauthenticated("no token was given", remedy="send it as 'Authorization: Bearer <token>'")
        identity = await self._identify(token)
        if identity is None:
            raise Unauthenticated("the token is not valid here", remedy="the node's token is in its state folder")
        wait = self._rates.take(identity.rates, asyncio.get_running_loop().time())
        if wait:
            raise Overloaded(
                f"more than {identity.rate:g} requests a second with this token", service="gateway", retry_after=wait
            )
        port = self._port.narrow(
            caller=f"http {identity.user}",
            rights=identity.rights,
            user=identity.user,
            top_priority=identity.top_priority,
        )
        return Visitor(
            identity=identity,
            port=port,
            trace=parse_traceparent(request.headers.get("traceparent", "")) or new_trace(),
        )

    def _check_host(self, request: web.Request) -> None:
        host = request.headers.get("Host")
        # A browser always says which host it means; what says nothing is not one and cannot be led astray.
        if self._hosts is None or host is None or _name_of(host) in self._hosts:
            return
        self._port.denied(Act.CONNECT, request.path, f"not for the host '{host}'", peer=request.remote)
        raise web.HTTPMisdirectedRequest(
            text=f"this gateway does not answer for the host '{host[:256]}' (ask 127.0.0.1, or set allowed_hosts)"
        )

    def _is_preflight(self, request: web.Request) -> bool:
        return (
            request.method == "OPTIONS"
            and "Access-Control-Request-Method" in request.headers
            and bool(self._cors(request))
        )

    def _cors(self, request: web.Request) -> dict[str, str]:
        origin = request.headers.get("Origin")
        if origin is None or not ("*" in self._origins or origin.lower().rstrip("/") in self._origins):
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": "X-Request-Id, Retry-After",
            "Vary": "Origin",
        }

    def _refusal(self, request: web.Request, refusal: web.HTTPException) -> ErrorAnswer:
        status = refusal.status
        message = refusal.text or HTTPStatus(status).phrase
        headers = {}
        if status == 404:
            message = f"there is nothing at {request.method} {request.path[:256]}"
        if isinstance(refusal, web.HTTPMethodNotAllowed):
            allowed = ", ".join(sorted(refusal.allowed_methods))
            message = f"{request.path[:256]} does not take {request.method}: it takes {allowed}"
            headers["Allow"] = allowed
        kind = REQUEST if status < 500 else SERVER
        return ErrorAnswer(status, ErrorBody(message, kind, None, _HTTP_CODES.get(status)), headers)


def _token(request: web.Request) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return request.headers.get("X-Api-Key", "").strip() or None


def _name_of(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].rstrip(".").lower()
