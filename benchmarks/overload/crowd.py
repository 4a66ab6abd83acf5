"""A thousand clients in one process that hear ticks; some of them stop reading, or ask for more than they read."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks.messages.stopwatch import P99, percentile
from benchmarks.overload.service import BULK, GROUPS, TICK
from benchmarks.overload.websocket import WebSocket, many_sockets

__all__ = ["FLOOD", "Crowd"]

AT_ONCE = 50  # that shake hands at a time
CREDIT = 10**6  # items that a slow reader says it takes
FLOOD = 256  # calls with large replies that one client makes at a time: as many as a session may have in flight


class Crowd:
    """Hears ticks and knows how late they came."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._late: list[float] = []
        self._clients: list[WebSocket] = []
        self._stopped: dict[str, WebSocket] = {}

    async def start(self) -> None:
        """Nobody is there yet."""
        many_sockets()

    async def stop(self) -> None:
        """Break all links off."""
        for each in self._clients:
            each.close()
        for each in self._clients:
            await each.over.wait()

    async def connect(self, count: int) -> None:
        """So many more clients, each of which hears the ticks of its group."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            async with gate:
                client = await WebSocket.connect(self._address, self._heard)
                client.say({"t": "subscribe", "id": 0, "subject": f"{TICK}.{number % GROUPS}"})
                self._clients.append(client)

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(number))

    async def take(self) -> dict[str, float]:
        """Of the ticks since this was last asked: their `count`, their p99 in seconds; and how many still read."""
        late, self._late = sorted(self._late), []
        reading = sum(each.is_open and each.session not in self._stopped for each in self._clients)
        return {"count": len(late), "p99": percentile(late, P99) if late else 0.0, "reading": reading}

    async def stop_reading(self, count: int) -> list[str]:
        """The first so many clients read nothing any more, whatever comes: by turns a stream of items that it has
        credit for, and bulky events. Returns their sessions.
        """
        stopping = self._readers(count)
        for number, client in enumerate(stopping):
            client.stop_reading()
            if number % 2:
                client.say({"t": "subscribe", "id": 1, "subject": BULK})
            else:
                client.say({"t": "open", "id": 1, "to": "load.flood", "credit": CREDIT})
            self._stopped[client.session] = client
        return [client.session for client in stopping]

    async def flood(self, count: int) -> list[str]:
        """The first so many clients call for large replies, as many as they may at a time, and read none."""
        calls = [{"t": "call", "id": 1 + number, "to": "load.large"} for number in range(FLOOD)]
        stopping = self._readers(count)
        for client in stopping:
            client.stop_reading()
            client.say(*calls)
            self._stopped[client.session] = client
        return [client.session for client in stopping]

    async def read_again(self, sessions: list[str]) -> None:
        """These clients read on."""
        for each in sessions:
            self._stopped[each].read_again()

    async def told(self, sessions: list[str]) -> list[tuple[int, str] | None]:
        """What the close frames of these clients said; None where none has come."""
        return [self._stopped[each].closed for each in sessions]

    def _readers(self, count: int) -> list[WebSocket]:
        """The first so many that have not stopped yet."""
        return [each for each in self._clients if each.session not in self._stopped][:count]

    def _heard(self, messages: list[dict[str, Any]]) -> None:
        now = time.monotonic()
        for message in messages:
            if message["t"] == "event" and message["id"] == 0:
                self._late.append(now - message["body"]["at"])
