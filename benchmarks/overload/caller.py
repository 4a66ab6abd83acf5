"""Calls in an open loop from a process of its own, each of them accounted for: answered, refused, expired or failed.

A call is sent when its time has come, however many are still open, and its latency counts from the moment that was
drawn: see `benchmarks.messages.open_loop`.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter
from typing import Any

from benchmarks.messages.open_loop import Arrivals
from benchmarks.messages.stopwatch import P50, P99, percentile
from benchmarks.overload.websocket import WebSocket

__all__ = ["Caller"]

TURN = 0.001  # seconds between two looks at what is due
FOREVER = 1e9  # seconds


class Caller:
    """Calls over several links; who calls in one loop at a time, closed or open."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._links: list[WebSocket] = []
        self._open: list[dict[int, float]] = []  # of each link: when the call of this id was due
        self._counts: Counter[str] = Counter()
        self._late: list[float] = []
        self._last_id = 0
        self._again: dict[str, Any] | None = None  # of a closed loop: what is asked when an answer has come
        self._sending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """No link yet."""

    async def stop(self) -> None:
        """Stop calling, and break the links off."""
        await self.rest()
        for each in self._links:
            each.close()
        for each in self._links:
            await each.over.wait()

    async def connect(self, links: int) -> None:
        """So many links, over which the calls go by turns."""
        for number in range(links):
            self._open.append({})
            self._links.append(await WebSocket.connect(self._address, functools.partial(self._heard, number)))

    async def capacity(self, to: str, depth: int, seconds: float) -> float:
        """Answers a second of a closed loop with `depth` calls in flight."""
        self._again = {"to": to}
        for number in range(depth):
            self._call(number % len(self._links), [time.monotonic()], self._again)
        await asyncio.sleep(seconds / 4)
        before, began = self._counts["answered"], time.monotonic()
        await asyncio.sleep(seconds)
        found = (self._counts["answered"] - before) / (time.monotonic() - began)
        self._again = None
        await self._settled()
        await self.take()
        return found

    async def begin(self, to: str, rate: float, options: dict[str, Any] | None = None) -> None:
        """Call `to` at so many calls a second from now on, with these fields beside."""
        await self.rest()
        self._sending = asyncio.create_task(self._send({"to": to, **(options or {})}, rate))

    async def rest(self) -> None:
        """Call no more."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
            self._sending = None

    async def settle(self, seconds: float) -> int:
        """Wait until all calls have ended, so long at most; how many have not."""
        try:
            async with asyncio.timeout(seconds):
                await self._settled()
        except TimeoutError:
            pass
        return sum(map(len, self._open))

    async def take(self) -> dict[str, float]:
        """What has become of calls since this was last asked: counts, and p50, p99 of the answers in seconds.

        `sent` is all that were sent; `answered`, `refused` (OVERLOADED), `expired` (DEADLINE) and `failed` are how they
        ended; `open` have not. `silent` are refusals without a time to come back, `lost` are links that are gone.
        """
        counts, self._counts = self._counts, Counter()
        late, self._late = sorted(self._late), []
        names = ("sent", "answered", "refused", "silent", "expired", "failed")
        return {
            **{name: counts[name] for name in names},
            "open": sum(map(len, self._open)),
            "lost": sum(not each.is_open for each in self._links),
            "p50": percentile(late, P50) if late else 0.0,
            "p99": percentile(late, P99) if late else 0.0,
        }

    async def _settled(self) -> None:
        while any(self._open):  # noqa: ASYNC110 - once in a run
            await asyncio.sleep(0.01)

    async def _send(self, fields: dict[str, Any], rate: float) -> None:
        turn = self._last_id = self._last_id + 1
        began = time.monotonic()
        due: list[float] = []
        for moment in Arrivals(rate, FOREVER, seed=turn):
            while began + moment > time.monotonic():
                if due:
                    turn = (turn + 1) % len(self._links)
                    self._call(turn, due, fields)
                    due = []
                await asyncio.sleep(TURN)
            due.append(began + moment)

    def _call(self, link: int, due: list[float], fields: dict[str, Any]) -> None:
        """Send a call for each of the moments, in one frame."""
        open_ones, messages = self._open[link], []
        for moment in due:
            self._last_id += 1
            open_ones[self._last_id] = moment
            messages.append({"t": "call", "id": self._last_id, **fields})
        self._counts["sent"] += len(due)
        self._links[link].say(*messages)

    def _heard(self, link: int, messages: list[dict[str, Any]]) -> None:
        now, open_ones, counts = time.monotonic(), self._open[link], self._counts
        for message in messages:
            due = open_ones.pop(message.get("id", -1), None)
            if due is None:
                continue
            if message["t"] == "result":
                counts["answered"] += 1
                self._late.append(now - due)
            else:
                _count(message["error"], counts)
            if self._again is not None:
                self._call(link, [now], self._again)


def _count(error: dict[str, Any], counts: Counter[str]) -> None:
    """How a call ended badly."""
    if error["code"] == "OVERLOADED":
        counts["refused"] += 1
        counts["silent"] += "retry_after_ms" not in error
    else:
        counts["expired" if error["code"] == "DEADLINE" else "failed"] += 1
