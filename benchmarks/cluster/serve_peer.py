"""Ray Serve as the front of a model that is played: one proxy, one replica, as it comes."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from typing import Any

import psutil

__all__ = ["RayServe"]

PORT = 8765  # Serve takes no free one
CORES = 4  # that Ray may plan with: its own actors have one each, and this is not what is measured
ANSWER: dict[str, object] = {
    "object": "chat.completion",
    "model": "none",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 54, "completion_tokens": 2, "total_tokens": 56},
}


class NoEngine:
    """Reads the question and answers at once."""

    async def __call__(self, request: Any) -> dict[str, object]:
        """One answer."""
        await request.json()
        return ANSWER


class RayServe:
    """Serve in a local cluster of its own."""

    async def start(self) -> None:
        """Deploy."""
        await asyncio.to_thread(self._open)

    async def stop(self) -> None:
        """End it."""
        await asyncio.to_thread(self._close)

    async def address(self) -> str:
        """There is nothing to join."""
        return ""

    async def door(self) -> dict[str, object]:
        """Where its proxy listens."""
        return {"host": "127.0.0.1", "port": PORT}

    async def proxy_time(self) -> float:
        """Seconds that the proxy's process had a processor."""
        for each in psutil.Process().children(recursive=True):
            if each.name().startswith("ray::Proxy") or "ProxyActor" in " ".join(each.cmdline()):
                times = each.cpu_times()
                return float(times.user + times.system)
        raise RuntimeError("the proxy was not found")

    def _open(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray
        from ray import serve

        self._folder = tempfile.TemporaryDirectory(prefix="ray-")
        ray.init(
            num_cpus=CORES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=self._folder.name,
        )
        self._ray: Any = ray
        self._serve: Any = serve
        quiet = {"enable_access_log": False}
        self._serve.start(http_options={"host": "127.0.0.1", "port": PORT}, logging_config=quiet)
        deployment = self._serve.deployment(max_ongoing_requests=1024, logging_config=quiet)(NoEngine)
        self._serve.run(deployment.bind(), route_prefix="/")

    def _close(self) -> None:
        self._serve.shutdown()
        self._ray.shutdown()
        self._folder.cleanup()
