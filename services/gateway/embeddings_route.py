"""`POST /v1/embeddings`: vectors of texts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from aiohttp import web

from microkernel.errors import Invalid, NotFound
from microkernel.message import convert
from services.gateway.bodies import Bodies
from services.gateway.door import visitor_of
from services.gateway.models_route import model_not_found
from services.gateway.openai_embeddings import embeddings_json, parse_embeddings
from services.gateway.settings import GatewaySettings
from services.inference.messages import Embeddings

__all__ = ["EmbeddingsRoute"]

IN_THREAD = 1 << 18  # bytes: to read or write more than this as JSON would hold up the loop for milliseconds
T = TypeVar("T")


class EmbeddingsRoute:
    """Answers requests for vectors."""

    def __init__(self, settings: GatewaySettings, bodies: Bodies) -> None:
        self._settings = settings
        self._bodies = bodies
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gateway-embeddings")

    async def answer(self, request: web.Request) -> web.Response:
        """One request."""
        visitor = visitor_of(request)
        async with self._bodies.read(request, limit=self._settings.body_limit, setting="body_limit") as body:
            asked = await self._run(len(body), partial(parse_embeddings, body))
        try:
            said = await visitor.port.call(
                "inference.embed", asked.to_embed(visitor.identity.user), trace=visitor.trace
            )
        except NotFound as error:
            return await model_not_found(visitor, error)
        except Invalid as error:
            error.field = asked.field_of(error.field)
            raise
        found = convert(said, Embeddings, what="inference.embed")
        write = partial(embeddings_json, found, as_base64=asked.encoding_format == "base64")
        return web.Response(body=await self._run(found.vectors.nbytes, write), content_type="application/json")

    async def close(self) -> None:
        """End its thread; nothing is answered afterwards."""
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    async def _run(self, size: int, work: Callable[[], T]) -> T:
        """What `work` gives, from a thread where it is about many bytes."""
        if size <= IN_THREAD:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
