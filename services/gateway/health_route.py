"""`/`, `/livez` and `/readyz`: what this is, that it lives, and whether it can answer. No token is needed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

import microkernel
from microkernel.errors import MicrokernelError
from microkernel.introspection import NodeStatus
from microkernel.message import convert
from microkernel.port import Port

__all__ = ["HealthRoutes"]

INFERENCE = "inference"


class HealthRoutes:
    """Answers for the node as a whole."""

    def __init__(self, port: Port, is_known: Callable[[web.Request], Awaitable[bool]]) -> None:
        self._port = port
        self._is_known = is_known

    async def about(self, _: web.Request) -> web.Response:
        """What listens here, for whoever opens the address."""
        return web.json_response(
            {
                "name": "microkernel",
                "version": microkernel.__version__,
                "what": "the operating system for language models",
                "openai_api": "/v1",
                "websocket": "/mk",
                "health": ["/livez", "/readyz"],
                "docs": "the folder docs/ of the source; `mk --help` lists the commands",
            }
        )

    async def livez(self, _: web.Request) -> web.Response:
        """This process answers."""
        return web.json_response({"status": "alive"})

    async def readyz(self, request: web.Request) -> web.Response:
        """Whether every essential service is ready, inference among them: a real token came out of a real model.

        Reasons may name paths and models, so only who has a token is told them; others are told states.
        """
        try:
            status = convert(await self._port.call("kernel.status", deadline=5.0), NodeStatus, what="kernel.status")
        except MicrokernelError as error:
            return _not_ready({"kernel": str(error) if await self._is_known(request) else "unavailable"})
        if not status.ready or INFERENCE in status.unready:
            if await self._is_known(request):
                return _not_ready(status.unready)
            return _not_ready({name: _state(why) for name, why in status.unready.items()})
        return web.json_response({"status": "ready"})


def _state(why: str) -> str:
    """The state at the front of "state: reason"."""
    return why.partition(":")[0]


def _not_ready(why: dict[str, str]) -> web.Response:
    return web.json_response({"status": "not ready", "unready": why}, status=503, headers={"Retry-After": "1"})
