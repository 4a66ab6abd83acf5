"""Others' ways to run many small tasks: Ray, and Dask's distributed scheduler. Both with a process for each core."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.messages.stopwatch import percentiles
from benchmarks.scheduling.items import nothing
from microkernel.cores import available_cores

__all__ = ["DaskTasks", "RayTasks"]

WARM_UP = 20  # single tasks


class _Peer:
    """It is driven from a thread of its own: both block, and want no loop of ours beneath them.

    It has a process for each core, or as many as a subclass says.
    """

    cores: int | None = None

    async def start(self) -> None:
        """Have the workers there."""
        await asyncio.to_thread(self.open)
        await asyncio.to_thread(self.bulk, 8)

    async def stop(self) -> None:
        """End them."""
        await asyncio.to_thread(self.close)

    async def tasks(self, seconds: float, count: int) -> dict[str, float]:
        """Seconds a task where `count` are asked for at once, and of one that is waited for."""
        return await asyncio.to_thread(_measured, self.bulk, self.single, seconds, count)

    def open(self) -> None:
        """Start."""
        raise NotImplementedError

    def close(self) -> None:
        """End."""
        raise NotImplementedError

    def bulk(self, count: int) -> None:
        """So many tasks at once, until all have ended."""
        raise NotImplementedError

    def single(self) -> None:
        """One task."""
        raise NotImplementedError


class RayTasks(_Peer):
    """`ray.get` of remote functions of a local cluster: one of them, or a list."""

    def open(self) -> None:
        """A cluster on this machine, without its dashboard."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray

        self._folder = tempfile.TemporaryDirectory(prefix="ray-")
        ray.init(
            num_cpus=self.cores or available_cores(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=self._folder.name,
        )
        self._ray: Any = ray
        self._nothing: Any = ray.remote(nothing)

    def close(self) -> None:
        """End the cluster."""
        self._ray.shutdown()
        self._folder.cleanup()

    def bulk(self, count: int) -> None:
        """A list of futures."""
        self._ray.get([self._nothing.remote(item) for item in range(count)])

    def single(self) -> None:
        """One future."""
        self._ray.get(self._nothing.remote(0))


class DaskTasks(_Peer):
    """`Client.map` and `Client.submit` of a local cluster of processes with one thread each."""

    def open(self) -> None:
        """A cluster on this machine, without its dashboard."""
        from distributed import Client, LocalCluster

        self._folder = tempfile.TemporaryDirectory(prefix="dask-")
        self._cluster: Any = LocalCluster(  # type: ignore[no-untyped-call] # it has no types
            n_workers=self.cores or available_cores(),
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=self._folder.name,
        )
        self._client: Any = Client(self._cluster)  # type: ignore[no-untyped-call] # as above

    def close(self) -> None:
        """End the cluster."""
        self._client.close()
        self._cluster.close()
        self._folder.cleanup()

    def bulk(self, count: int) -> None:
        """A map. It is not pure: of pure functions the results are kept."""
        self._client.gather(self._client.map(nothing, range(count), pure=False))

    def single(self) -> None:
        """One future."""
        self._client.submit(nothing, 0, pure=False).result()


def _measured(bulk: Callable[[int], None], single: Callable[[], None], seconds: float, count: int) -> dict[str, float]:
    """As `rate` and `times` of `benchmarks.messages.stopwatch`, without a loop."""
    clock = time.perf_counter
    for _ in range(WARM_UP):
        single()
    found: list[float] = []
    ends = clock() + seconds
    while (began := clock()) < ends or not found:
        single()
        found.append(clock() - began)
    bulk(count)
    done = 0
    began = clock()
    while (elapsed := clock() - began) < seconds or not done:
        bulk(count)
        done += count
    ordered = percentiles(found)
    return {"bulk": elapsed / done, "single": ordered["p50"], "p99": ordered["p99"]}
