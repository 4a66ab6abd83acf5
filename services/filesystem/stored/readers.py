"""Threads that read names, each with a connection of its own: they see what is committed, and wait for no writer."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from services.filesystem.stored.database import connect, faults_named

__all__ = ["Readers"]

T = TypeVar("T")

THREADS = 2


class Readers:
    """Runs what reads the tables of one volume."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=name, initializer=self._open)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` makes of a connection."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, work)

    async def close(self) -> None:
        """End the threads."""
        await asyncio.to_thread(self._threads.shutdown)
        for db in self._opened:
            db.close()

    def _open(self) -> None:
        db = self._local.db = connect(self._path, reads=True)
        self._opened.append(db)

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with faults_named(self._path):
            return work(self._local.db)
