"""The service that is overloaded: echoes, large replies, streams and events without end, and work of a millisecond."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator

from microkernel.message import Message
from microkernel.service import Service, handles, streams

__all__ = ["BULK", "GROUPS", "TICK", "WORK", "Load", "Pace"]

TICK, BULK = "tick", "bulk"  # first names of the subjects
GROUPS = 20  # subjects of ticks: `tick.0` ... `tick.19`, one after the other, so that they do not come in one burst
TICKS = 4.0  # a second and subject
BULKS = 100.0  # a second
LARGE = 256 * 1024  # bytes of a large reply
ITEM = 16 * 1024  # bytes of an item, and of a bulky event
WORK = 0.001  # seconds
SAMPLE = 2**20  # bytes that are hashed to know how fast that is


class Text(Message):
    """Some text."""

    text: str = ""


class Pace(Message):
    """Which events are published until the next `pace`."""

    ticks: bool = False
    bulks: bool = False


class Load(Service):
    """Does what it is asked."""

    name = "load"

    async def start(self) -> None:
        """Find out how many bytes a thread hashes in a millisecond; publish nothing yet."""
        self._block = bytes(round(SAMPLE * WORK / min(_seconds_to_hash(SAMPLE) for _ in range(9))))
        self._pace = Pace()
        self.spawn(self._tick(), name="ticks")
        self.spawn(self._bulk(), name="bulks")

    @handles(concurrency=1024, queue=1024)
    async def echo(self, message: Text) -> Text:
        """The same."""
        return message

    @handles(concurrency=1024, queue=1024)
    async def large(self) -> str:
        """A reply that is made anew each time, as an answer would be."""
        return "x" * LARGE

    @streams
    async def flood(self) -> AsyncGenerator[Text, None]:
        """Items as fast as they are taken, without end."""
        while True:
            yield Text("x" * ITEM)

    @handles(concurrency=1, queue=64)
    async def compute(self) -> None:
        """A millisecond on the compute thread; one runs, 64 wait."""
        await self.executors.get("cpu0").run(hashlib.sha256, self._block)

    @handles(concurrency=1, queue=64)
    async def hold(self) -> None:
        """A millisecond on the loop itself, which nobody should do."""
        ends = time.perf_counter() + WORK
        while time.perf_counter() < ends:
            pass

    @handles
    async def pace(self, message: Pace) -> None:
        """Publish these events from now on."""
        self._pace = message

    async def _tick(self) -> None:
        """Each group in turn."""
        pause, number = 1 / (TICKS * GROUPS), 0
        while True:
            await asyncio.sleep(pause)
            if self._pace.ticks:
                number = (number + 1) % GROUPS
                self.publish(f"{TICK}.{number}", at=time.monotonic())

    async def _bulk(self) -> None:
        while True:
            await asyncio.sleep(1 / BULKS)
            if self._pace.bulks:
                self.publish(BULK, text="x" * ITEM)


def _seconds_to_hash(size: int) -> float:
    block = bytes(size)
    began = time.perf_counter()
    hashlib.sha256(block)
    return time.perf_counter() - began
