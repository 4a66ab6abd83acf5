"""Others' ways to ask somebody in the same process: anyio's memory streams, xoscar's and pykka's actors."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.messages.service import Ping
from benchmarks.messages.stopwatch import rate

__all__ = ["AnyioStreams", "Pykka", "Xoscar"]

BATCH = 200  # they take longer for each than a call does


class AnyioStreams:
    """A request into one memory object stream, its reply out of another; a task serves."""

    async def start(self) -> None:
        """Start the task that serves."""
        import anyio

        self._ask, requests = anyio.create_memory_object_stream[Ping](16)
        replies, self._reply = anyio.create_memory_object_stream[None](16)

        async def serve() -> None:
            async for _ in requests:
                await replies.send(None)

        self._open = (self._ask, requests, replies, self._reply)
        self._task = asyncio.create_task(serve())

    async def stop(self) -> None:
        """Close the streams; the task ends with them."""
        self._ask.close()
        await self._task
        for each in self._open:
            each.close()

    async def calls(self, seconds: float) -> float:
        """Calls a second."""
        send, receive, ping = self._ask.send, self._reply.receive, Ping()

        async def step(count: int) -> None:
            for _ in range(count):
                await send(ping)
                await receive()

        return await rate(step, seconds, batch=BATCH)


class Xoscar:
    """An actor asked by another one of its pool, by a local reference: ten times as fast as from outside the pool."""

    async def start(self) -> None:
        """Make the pool and the actors."""
        import xoscar  # type: ignore[import-untyped] # it has no types

        class Asked(xoscar.Actor):  # type: ignore[misc] # as above
            async def noop(self, message: Ping) -> None:
                pass

        class Asking(xoscar.Actor):  # type: ignore[misc] # as above
            async def calls(self, seconds: float) -> float:
                actor: Any = await xoscar.actor_ref("asked", address=self.address)
                noop, ping = actor.noop, Ping()

                async def step(count: int) -> None:
                    for _ in range(count):
                        await noop(ping)

                return await rate(step, seconds, batch=BATCH)

        self._pool: Any = await xoscar.create_actor_pool("127.0.0.1", n_process=0)
        address = self._pool.external_address
        await xoscar.create_actor(Asked, address=address, uid="asked")
        self._asking: Any = await xoscar.create_actor(Asking, address=address)

    async def stop(self) -> None:
        """End the pool."""
        await self._pool.stop()

    async def calls(self, seconds: float) -> float:
        """Calls a second."""
        return float(await self._asking.calls(seconds))


class Pykka:
    """An actor with a thread of its own, asked and waited for as pykka is used: from another thread."""

    async def start(self) -> None:
        """Start the actor."""
        import pykka

        class Actor(pykka.ThreadingActor):
            def on_receive(self, message: Any) -> None:
                pass

        self._actor: Any = Actor.start()

    async def stop(self) -> None:
        """Stop it."""
        self._actor.stop()

    async def calls(self, seconds: float) -> float:
        """Calls a second."""
        ask, ping = self._actor.ask, Ping()

        async def step(count: int) -> None:
            for _ in range(count):
                ask(ping)

        return await rate(step, seconds, batch=BATCH)
