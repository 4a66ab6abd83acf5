"""The executors of a node, by the names of their devices."""

from __future__ import annotations

from collections.abc import Iterator

from microkernel.errors import AlreadyExists, NotFound
from microkernel.executor import Executor, ExecutorStatus

__all__ = ["Executors"]


class Executors:
    """The executors of a node by device name."""

    def __init__(self) -> None:
        self._executors: dict[str, Executor] = {}

    def __iter__(self) -> Iterator[Executor]:
        return iter(tuple(self._executors.values()))

    async def add(self, executor: Executor) -> None:
        """Start `executor` and make it known. Raises `AlreadyExists`."""
        if executor.name in self._executors:
            raise AlreadyExists(f"there is an executor '{executor.name}' already")
        self._executors[executor.name] = executor
        try:
            await executor.start()
        except BaseException:
            del self._executors[executor.name]
            raise

    def get(self, name: str) -> Executor:
        """Raises `NotFound`."""
        executor = self._executors.get(name)
        if executor is None:
            known = ", ".join(sorted(self._executors)) or "none"
            raise NotFound(f"no device is named '{name}'", remedy=f"devices here: {known}")
        return executor

    async def remove(self, name: str, *, timeout: float = 10.0) -> bool:
        """Stop and forget; False if a thread did not end in time."""
        executor = self._executors.pop(name, None)
        return True if executor is None else await executor.stop(timeout=timeout)

    def status(self) -> tuple[ExecutorStatus, ...]:
        """All executors."""
        return tuple(executor.status() for executor in self._executors.values())

    async def close(self) -> None:
        """Stop all."""
        for name in tuple(self._executors):
            await self.remove(name)
