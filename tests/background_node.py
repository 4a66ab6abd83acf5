"""A node on a loop and a thread of its own, for tests whose own threads block."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from microkernel.service import Service
from microkernel.testing import TestKernel
from services.gateway.service import Gateway


class BackgroundNode:
    """A real node with a gateway on a free port; for `with`."""

    def __init__(self, *services: type[Service], **settings: Any) -> None:
        self._services = services
        self._settings = {"gateway": {"port": 0}, **settings}
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="node")

    def __enter__(self) -> BackgroundNode:
        self._thread.start()
        self._up.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    @property
    def options(self) -> dict[str, str]:
        """What a client is given to find it."""
        return {"address": self.url, "token": self.token}

    def call(self, to: str, **fields: Any) -> Any:
        """What a service answers root."""
        return asyncio.run_coroutine_threadsafe(self.system.call(to, fields), self.loop).result(60)

    async def _run(self) -> None:
        try:
            async with TestKernel(*self._services, Gateway, settings=self._settings) as self.system:
                self.loop, self._over = asyncio.get_running_loop(), asyncio.Event()
                self.url = (await self.system.call("gateway.address")).url
                self.token, self.root = self.system.token, self.system.root
                self._up.set()
                await self._over.wait()
        finally:
            self._up.set()
