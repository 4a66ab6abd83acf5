"""Opens the websocket to a node: to the host that was named, and to no other."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from microkernel.errors import Denied, Invalid, Unauthenticated, Unavailable
from microkernel.wire import codec
from microkernel.wire.trust import Expected, Trust, context_of

__all__ = ["BOOT", "dial"]

CONNECT_TIMEOUT = 10.0
CLOSE_TIMEOUT = 1.0
BOOT = "start one with: python -m microkernel boot"


@asynccontextmanager
async def dial(url: str, trust: Trust | Expected | None = None) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """The websocket at `url`. A redirect is refused: whoever it leads to would be sent the token.

    `trust` says whose certificate is believed on an encrypted link. Raises `Unavailable` when no node answers there,
    `Unauthenticated` when its certificate is not believed, `Denied` when it lets nobody in from here, `Invalid` for
    what is no address, and `PreconditionFailed` for certificates that cannot be read.
    """
    name, context = None, None
    if url.startswith("wss:"):
        if isinstance(trust, Expected):
            name, context = trust.name, trust.context
        else:  # the system's certificates are a large file
            context = await asyncio.to_thread(context_of, trust)
    timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT)
    async with aiohttp.ClientSession(timeout=timeout, trace_configs=[_no_redirects()]) as http:
        socket = await _open_socket(http, url, context, name)
        if socket.protocol != codec.SUBPROTOCOL:  # RFC 6455, section 4.1: the check is left to us
            await socket.close()
            raise Unavailable(f"what answers at {url} does not speak {codec.SUBPROTOCOL}", may_have_run=False)
        answer = socket._response  # noqa: SLF001 - aiohttp has no other way to what is below
        connection = answer.connection
        transport = None if connection is None else connection.transport
        try:
            yield socket
        finally:
            answer.close()  # aiohttp forgets it when the link breaks under a read
            if transport is not None:
                transport.abort()  # what a stalled link has not taken by now would keep it open for many minutes


async def _open_socket(
    http: aiohttp.ClientSession, url: str, context: ssl.SSLContext | None, name: str | None
) -> aiohttp.ClientWebSocketResponse:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):  # of the upgrade too: who takes the link need not answer
            return await http.ws_connect(
                url,
                protocols=(codec.SUBPROTOCOL,),
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT),
                max_msg_size=0,  # the session judges the size, by its own limit
                ssl=True if context is None else context,
                server_hostname=name,
            )
    except aiohttp.WSServerHandshakeError as error:
        if error.status == 503:
            raise Unavailable(f"the node at {url} takes nobody now", retry_after=1.0, may_have_run=False) from error
        if error.status == 403:
            raise Denied(f"the node at {url} does not let this client in") from error
        raise Unavailable(
            f"what answers at {url} is no node (HTTP status {error.status})", may_have_run=False
        ) from error
    except aiohttp.ClientConnectorCertificateError as error:
        raise Unauthenticated(
            f"the certificate of {url} is not believed: {error.certificate_error}",
            remedy="give the file of its authority: cafile=…",
        ) from error
    except aiohttp.ClientSSLError as error:
        raise Unavailable(f"what answers at {url} speaks no TLS: {error}", may_have_run=False) from error
    except (aiohttp.InvalidURL, ValueError) as error:
        raise Invalid(f"'{url}' is no address of a node", remedy="it looks like http://127.0.0.1:7070") from error
    except TimeoutError as error:
        why = f"the node at {url} did not answer within {CONNECT_TIMEOUT:g} s"
        raise Unavailable(why, retry_after=1.0, may_have_run=False) from error
    except (aiohttp.ClientError, OSError) as error:
        raise Unavailable(f"no node is running at {url}", remedy=BOOT, may_have_run=False) from error


def _no_redirects() -> aiohttp.TraceConfig:
    """`ws_connect` follows redirects and has no option against it: they are stopped before they are followed."""

    async def refuse(_: aiohttp.ClientSession, __: object, redirect: aiohttp.TraceRequestRedirectParams) -> None:
        answer = redirect.response
        answer.close()
        raise aiohttp.WSServerHandshakeError(
            answer.request_info, answer.history, status=answer.status, message="a redirect", headers=answer.headers
        )

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(refuse)
    return config
