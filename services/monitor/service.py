"""Keeps the log of the node and shows it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator

from microkernel.message import Message
from microkernel.service import Service, handles, streams
from services.monitor.journal import Journal, level_number
from services.monitor.messages import LogRecord, ReadLog

__all__ = ["Monitor"]

FOLLOW_LIMIT = 1024


class MonitorSettings(Message):
    """The least level that is kept."""

    level: str = "info"


class Monitor(Service):
    """The log: what has happened on this node, in memory and in `monitor/log.jsonl`."""

    name = "monitor"
    Settings = MonitorSettings

    async def start(self) -> None:
        self._followers: set[_Follower] = set()
        loop = asyncio.get_running_loop()

        def added(record: LogRecord) -> None:
            # Logging happens on compute threads as well.
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._deliver, record)

        self._journal = Journal(self.state_dir / "log.jsonl", added)
        self._journal.setLevel(level_number(self.settings.level))
        logger = logging.getLogger("microkernel")
        self._former_level = logger.level
        logger.setLevel(min(logger.level or logging.WARNING, self._journal.level))
        logger.addHandler(self._journal)

    async def stop(self) -> None:
        logger = logging.getLogger("microkernel")
        logger.removeHandler(self._journal)
        logger.setLevel(self._former_level)
        self._journal.close()

    @handles(name="log", idempotent=True)
    async def read(self, message: ReadLog) -> list[LogRecord]:
        """The last records, oldest first."""
        return self._journal.read(message)

    @streams
    async def follow(self, message: ReadLog) -> AsyncIterator[LogRecord]:
        """The last records, and then each as it is written."""
        least = level_number(message.level)
        follower = _Follower()
        self._followers.add(follower)
        seen = 0
        try:
            for record in self._journal.read(message):
                seen = record.number
                yield record
            while True:
                record = await follower.next()
                of_service = message.service in {None, record.logger.partition(".")[0]}
                # What was written while the past was read out comes both ways.
                if of_service and record.number > seen and level_number(record.level) >= least:
                    yield record
        finally:
            self._followers.discard(follower)

    def _deliver(self, record: LogRecord) -> None:
        for follower in self._followers:
            follower.add(record)


class _Follower:
    """A bounded queue of one reader; when it falls behind, the oldest records are left out."""

    def __init__(self) -> None:
        self._records: deque[LogRecord] = deque(maxlen=FOLLOW_LIMIT)
        self._wake = asyncio.Event()

    def add(self, record: LogRecord) -> None:
        self._records.append(record)
        self._wake.set()

    async def next(self) -> LogRecord:
        while not self._records:
            self._wake.clear()
            await self._wake.wait()
        return self._records.popleft()
