"""Live state as files: each is written by asking the service that knows, whenever somebody reads it.

What a user may not see by asking that service, is not there for that user either: it is asked on the user's behalf.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from typing import Any

from microkernel.errors import NotFound, Unavailable
from microkernel.message import convert
from microkernel.service import Service
from services.devices.messages import Device
from services.filesystem.messages import FileKind, Stat
from services.filesystem.paths import TreePath
from services.filesystem.volume import Version, a_folder, no_versions, not_a_folder, not_there, page_of, part_of
from services.memory.messages import Account
from services.scheduler.messages import Process

__all__ = ["DeviceFiles", "LiveFiles", "ProcessFiles"]

Write = Callable[[], Awaitable[str]]
Folder = dict[str, Any]
"""Names, each with a `Write` or a folder in it."""


class LiveFiles(ABC):
    """A volume of files that are written when they are read."""

    about = ""

    def __init__(self, service: Service, mount: TreePath) -> None:
        """`service` is whose calls ask."""
        self._service = service
        self._mount = mount

    @abstractmethod
    async def entries(self) -> Folder:
        """What there is now; each is written when it is read."""

    async def stat(self, path: TreePath, _user: str | None, /, version: Version = None) -> Stat:
        found = await self._find(path, version)
        return _stat(found, path, self.about if path == self._mount else "")

    async def list(
        self, path: TreePath, _user: str | None, /, version: Version = None, *, after: str = "", limit: int = 10_000
    ) -> list[Stat]:
        found = await self._find(path, version)
        if not isinstance(found, dict):
            raise not_a_folder(path)
        listed = [_stat(found[name], path / name) for name in sorted(found, key=_in_order)]
        return page_of(listed, after, limit)

    async def read(
        self, path: TreePath, _user: str | None, /, start: int, stop: int | None, version: Version = None
    ) -> AsyncGenerator[bytes, None]:
        found = await self._find(path, version)
        if isinstance(found, dict):
            raise a_folder(path)
        for piece in part_of((await found()).encode(), start, stop):
            yield piece

    async def close(self) -> None:  # noqa: B027 # nothing is open, of none of them
        """See `Volume`."""

    async def _find(self, path: TreePath, version: Version) -> Any:
        if version is not None:
            raise no_versions(path)
        found: Any = await self.entries()
        for name in path.below(self._mount).names:
            if not isinstance(found, dict) or name not in found:
                raise not_there(path)
            found = found[name]
        return found

    async def _ask(self, to: str, kind: Any, **fields: Any) -> Any:
        """What a service answers; nothing of many where it is not there."""
        try:
            return convert(await self._service.call(to, **fields), kind)
        except (NotFound, Unavailable):
            return []


class ProcessFiles(LiveFiles):
    """A folder for each process that runs, and the state of the node."""

    about = "processes that run, services, memory"

    async def entries(self) -> Folder:
        processes = await self._ask("scheduler.list", list[Process])
        return {str(process.pid): self._process(process) for process in processes} | {
            "meminfo": self._memory,
            "services": self._services,
            "status": self._node,
        }

    def _process(self, process: Process) -> Folder:
        async def status() -> str:
            return lines(
                {
                    "pid": process.pid,
                    "parent": process.parent or "",
                    "kind": process.kind,
                    "title": process.title,
                    "service": process.service,
                    "owner": process.owner,
                    "class": process.process_class,
                    "nice": process.nice,
                    "due_seconds": "" if process.due is None else f"{process.due:.3f}",
                    "state": process.state,
                    "device": process.device or "",
                    "age_seconds": f"{process.age:.3f}",
                    "device_seconds": f"{process.device_seconds:.6f}",
                    "tokens_in": process.tokens_in,
                    "tokens_out": process.tokens_out,
                }
            )

        async def why() -> str:
            return f"{await self._service.call('scheduler.why', pid=process.pid)}\n"

        return {"status": status, "why": why}

    async def _memory(self) -> str:
        accounts: Iterable[Account] = await self._ask("memory.usage", list[Account])
        return "".join(
            lines(
                {
                    "device": account.device,
                    "tier": account.tier,
                    "limit_bytes": account.limit_bytes,
                    "reserved_bytes": account.reserved_bytes,
                    "used_bytes": account.used_bytes,
                    "rung": account.rung.name.lower(),
                }
            )
            + "\n"
            for account in accounts
        )

    async def _services(self) -> str:
        services = await self._service.call("kernel.services")
        rows = [("name", "state", "incarnation", "in_flight", "why")]
        rows += [(each.name, each.state, str(each.incarnation), str(each.in_flight), each.why) for each in services]
        return "".join("\t".join(row) + "\n" for row in rows)

    async def _node(self) -> str:
        status = await self._service.call("kernel.status")
        return lines(
            {
                "node": status.node,
                "version": status.version,
                "pid": status.pid,
                "uptime_seconds": f"{status.uptime_seconds:.3f}",
                "ready": str(status.ready).lower(),
                "loop_lag_p99_ms": f"{status.loop_lag_p99_ms:.3f}",
            }
        )


class DeviceFiles(LiveFiles):
    """A file for each device."""

    about = "devices, and how they are"

    async def entries(self) -> Folder:
        return {device.name: self._device(device) for device in await self._ask("devices.list", list[Device])}

    @staticmethod
    def _device(device: Device) -> Write:
        async def write() -> str:
            return lines(
                {
                    "name": device.name,
                    "kind": device.kind,
                    "driver": device.driver,
                    "model": device.model,
                    "state": device.state,
                    "why": device.why,
                    "cores": device.cores,
                    "threads": device.threads,
                    "core_threads": device.core_threads,
                    "memory_bytes": device.memory_bytes,
                    "memory_free_bytes": device.memory_free_bytes,
                    "policy": device.policy,
                    "running": device.running,
                    "queued": device.queued,
                    "busy_seconds": f"{device.busy_seconds:.6f}",
                }
            )

        return write


def lines(fields: Mapping[str, object]) -> str:
    """A line for each field, as files in /proc have them: a name, a tab, a value without line breaks."""
    return "".join(f"{name}:\t{' '.join(str(value).split())}\n" for name, value in fields.items())


def _stat(found: Any, path: TreePath, about: str = "") -> Stat:
    return Stat(path=str(path), kind=FileKind.FOLDER if isinstance(found, dict) else FileKind.LIVE, about=about)


def _in_order(name: str) -> tuple[bool, int, str]:
    """Numbers by their size, and before names."""
    return not name.isdecimal(), int(name) if name.isdecimal() else 0, name
