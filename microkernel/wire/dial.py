"""Opens the websocket to a node: to the host that was named, and to no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from microkernel.errors import Denied, Invalid, Unavailable
from microkernel.wire import codec

__all__ = ["BOOT", "dial"]

CONNECT_TIMEOUT = 10.0
CLOSE_TIMEOUT = 1.0
BOOT = "start one with: python -m microkernel boot"


@asynccontextmanager
async def dial(url: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """The websocket at `url`. A redirect is refused: whoever it leads to would be sent the token.

    Raises `Unavailable` when no node answers there, `Denied` when it lets nobody in from here, and `Invalid` for what
    is no address.
    """
    timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT)
    async with aiohttp.ClientSession(timeout=timeout, trace_configs=[_no_redirects()]) as http:
        yield await _open_socket(http, url)


async def _open_socket(http: aiohttp.ClientSession, url: str) -> aiohttp.ClientWebSocketResponse:
    try:
        return await http.ws_connect(
            url,
            protocols=(codec.SUBPROTOCOL,),
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT),
            max_msg_size=0,  # the session judges the size, by its own limit
        )
    except aiohttp.WSServerHandshakeError as error:
        if error.status == 503:
            raise Unavailable(f"the node at {url} takes nobody now", retry_after=1.0, may_have_run=False) from error
        if error.status == 403:
            raise Denied(f"the node at {url} does not let this client in") from error
        raise Unavailable(
            f"what answers at {url} is no node (HTTP status {error.status})", may_have_run=False
        ) from error
    except (aiohttp.InvalidURL, ValueError) as error:
        raise Invalid(f"'{url}' is no address of a node", remedy="it looks like http://127.0.0.1:7070") from error
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
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
