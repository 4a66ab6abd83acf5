"""aiohttp's websocket as it is, one message at a time and 32: what comes back is not told apart from anything else."""

from __future__ import annotations

import time
from collections import deque

from benchmarks.cluster.calls import DEPTH
from benchmarks.messages.aiohttp_peer import MESSAGE
from benchmarks.messages.aiohttp_peer import EchoClient as OneSocket
from benchmarks.messages.stopwatch import percentiles

__all__ = ["EchoClient"]


class EchoClient(OneSocket):
    """Holds one websocket to `benchmarks.messages.aiohttp_peer:EchoServer`."""

    async def among(self, seconds: float) -> dict[str, float]:
        """Seconds of one message of 100 bytes that comes back, among 32."""
        return percentiles(await self._among(seconds, DEPTH))

    async def _among(self, seconds: float, depth: int) -> list[float]:
        """Messages come back in the order in which they went, so whose answer comes next is known."""
        send, receive = self._socket.send_str, self._socket.receive_str
        clock, sent, found = time.perf_counter, deque[float](), list[float]()
        for _ in range(depth):
            sent.append(clock())
            await send(MESSAGE)
        ends = clock() + seconds
        while sent:
            await receive()
            now = clock()
            found.append(now - sent.popleft())
            if now < ends:
                sent.append(clock())
                await send(MESSAGE)
        return found
