"""A node for one test: the real kernel, the services you name, a state folder that goes away.

It boots on whatever loop runs: the test's own, or a simulated one (`microkernel.testing.simulation`), where compute
threads are simulated with the time.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from microkernel.config import Config
from microkernel.events import Subscription
from microkernel.kernel import Kernel
from microkernel.plugins import Plugin
from microkernel.port import Stream
from microkernel.service import Service
from microkernel.testing.executors import SimulatedExecutors
from microkernel.testing.loop import SimulatedLoop

__all__ = ["TestKernel"]


class TestKernel:
    """Boots in `async with`, with every service ready; at the end nothing may be left: no call, task or thread.

    Services are given as classes, or as objects for their first incarnation; broken ones as `Plugin`. `settings` are
    the sections of the services. The state folder is a temporary one unless `root` is given.

    >>> async def example() -> None:
    ...     async with TestKernel(KeyValue) as system:
    ...         await system.call("kv.put", key="a", value=b"1")
    """

    __test__ = False  # not a test case of pytest's

    def __init__(
        self,
        *services: type[Service] | Service | Plugin,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        config: Config | None = None,
        root: Path | None = None,
        wait_ready: bool = True,
    ) -> None:
        self._plugins = [_plugin(service) for service in services]
        self._config = (config or Config()).with_settings(settings or {})
        self._root = root
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._wait_ready = wait_ready
        self._tasks: set[asyncio.Task[Any]] = set()
        self._threads: set[threading.Thread] = set()
        self.kernel: Kernel

    async def __aenter__(self) -> TestKernel:
        self._tasks = asyncio.all_tasks()
        self._threads = set(threading.enumerate())
        if self._root is None:
            self._folder = tempfile.TemporaryDirectory(prefix="microkernel-")
            self._root = Path(self._folder.name)
        simulated = isinstance(asyncio.get_running_loop(), SimulatedLoop)
        executors = SimulatedExecutors() if simulated else None
        if simulated:  # its time does not pass while a handler runs, and a thread that looks on would not repeat itself
            self._config = msgspec.structs.replace(self._config, lag_threshold=0.0)
        self.kernel = Kernel(self._config, self._root, self._plugins, executors=executors)
        try:
            await self.kernel.boot()
            if self._wait_ready:
                await self.kernel.wait_ready(everyone=True)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        open_calls = self.calls_in_flight()
        await self._end()
        if error is None:
            self._assert_nothing_left(open_calls)

    @property
    def root(self) -> Path:
        """The state folder."""
        return self.kernel.root.path

    @property
    def token(self) -> str:
        """The root token."""
        return self.kernel.token.token

    async def call(self, to: str, message: Any = None, /, **fields: Any) -> Any:
        """`Port.call` with all rights."""
        return await self.kernel.port.call(to, message, **fields)

    def stream(self, to: str, message: Any = None, /, **fields: Any) -> Stream:
        """`Port.stream` with all rights."""
        return self.kernel.port.stream(to, message, **fields)

    def publish(self, subject: str, message: Any = None, /, **fields: Any) -> None:
        """`Port.publish`."""
        self.kernel.port.publish(subject, message, **fields)

    def subscribe(self, subject: str, *, group: str | None = None) -> Subscription:
        """`Port.subscribe`."""
        return self.kernel.port.subscribe(subject, group=group)

    async def restart(self, name: str) -> None:
        """Restart a service and those that need it."""
        await self.kernel.restart(name)

    def state(self, name: str) -> str:
        """The state of a service: `ready`, `restarting` …"""
        return self.kernel.router.registry.entry(name).state.value

    async def until(self, name: str, *states: str) -> None:
        """Return when service `name` is in one of `states`."""
        async with self.subscribe(f"service.{name}.*") as changes:
            if self.state(name) in states:
                return
            async for change in changes:
                if change.body["state"] in states:
                    return

    def calls_in_flight(self) -> dict[str, int]:
        """Calls and streams that have not ended, by handler."""
        return {
            binding.gate.target: binding.gate.in_flight
            for entry in self.kernel.router.registry
            for binding in entry.bindings.values()
            if binding.gate.in_flight
        }

    async def _end(self) -> None:
        await self.kernel.shutdown("the test has ended")
        if self._folder is not None:
            self._folder.cleanup()

    def _assert_nothing_left(self, open_calls: dict[str, int]) -> None:
        tasks = asyncio.all_tasks() - self._tasks - {asyncio.current_task()}
        threads = [
            thread
            for thread in set(threading.enumerate()) - self._threads
            # the loop keeps threads of its own: for `to_thread`, for names, for child processes
            if thread.is_alive() and not thread.name.startswith(("asyncio", "uvloop_", "ThreadPoolExecutor"))
        ]
        assert not open_calls, f"calls were left open: {open_calls}"
        assert not tasks, f"tasks were left running: {sorted(task.get_name() for task in tasks)}"
        assert not threads, f"threads were left running: {sorted(thread.name for thread in threads)}"


def _plugin(service: type[Service] | Service | Plugin) -> Plugin:
    if isinstance(service, Plugin):
        return service
    if isinstance(service, Service):
        return Plugin(service.name, "test", kind=_Once(service))
    return Plugin(service.name, "test", kind=service)


class _Once:
    """Stands for the class of an object that was given: makes that object first, and new ones later."""

    def __init__(self, service: Service) -> None:
        self._first: Service | None = service
        self._kind = type(service)

    def __call__(self) -> Service:
        first, self._first = self._first, None
        return first or self._kind()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kind, name)
