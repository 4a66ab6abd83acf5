"""Work that takes until somebody says so."""

from __future__ import annotations

import asyncio
import threading

__all__ = ["Plug"]


class Plug:
    """Keeps a compute thread busy until it is pulled."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self.pulled = threading.Event()

    def __call__(self) -> None:
        self.running.set()
        self.pulled.wait(30)

    async def begun(self) -> None:
        """Return once a thread is busy with it."""
        assert await asyncio.to_thread(self.running.wait, 30)
