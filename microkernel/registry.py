"""Who is there: names, states and the gates behind them. Sans-IO: no await, no clock, no loop."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from microkernel.errors import MicrokernelError, NotFound, Unavailable

if TYPE_CHECKING:
    from microkernel.ensemble import Balanced
    from microkernel.gate import Gate
    from microkernel.service import Handler, Service

__all__ = ["Binding", "Entry", "Registry", "ServiceState"]


class ServiceState(StrEnum):
    """Where a service stands."""

    WAITING = "waiting"  # for what it needs
    STARTING = "starting"
    RUNNING = "running"  # answers, but is not ready for its whole job yet
    READY = "ready"
    DRAINING = "draining"
    RESTARTING = "restarting"
    BROKEN = "broken"  # cannot be loaded
    QUARANTINED = "quarantined"  # crashed too often
    STOPPED = "stopped"
    ELSEWHERE = "elsewhere"  # another node of the cluster has it

    @property
    def answers(self) -> bool:
        """Whether calls are admitted."""
        return self in {ServiceState.RUNNING, ServiceState.READY}

    @property
    def passing(self) -> bool:
        """Whether a call that has not begun may wait for this to change by itself."""
        return self in {
            ServiceState.WAITING,
            ServiceState.STARTING,
            ServiceState.DRAINING,
            ServiceState.RESTARTING,
        }


class Binding(msgspec.Struct, frozen=True):
    """A handler and the gate of its present incarnation; of several instances, their gates as one."""

    handler: Handler
    gate: Gate | Balanced


class Entry(msgspec.Struct):
    """One service name. `why` explains the state in a sentence."""

    name: str
    state: ServiceState = ServiceState.WAITING
    why: str = ""
    incarnation: int = 0
    bindings: dict[str, Binding] = {}
    kind: Any = None  # its class; None for a broken one

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is for another node to answer."""
        return self.state is ServiceState.ELSEWHERE


class Registry:
    """All service names of a node."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def add(self, name: str) -> Entry:
        """The entry of `name`, made if it is new."""
        return self._entries.setdefault(name, Entry(name))

    def remove(self, name: str) -> None:
        """Forget `name`."""
        self._entries.pop(name, None)

    def get(self, name: str) -> Entry | None:
        """The entry of `name`, None where there is none."""
        return self._entries.get(name)

    def kind(self, name: str) -> type[Service] | None:
        """The class of service `name`, where it is installed."""
        entry = self._entries.get(name)
        kind = None if entry is None else entry.kind
        return kind if isinstance(kind, type) else None

    def entry(self, name: str) -> Entry:
        """Raises `NotFound` that lists near names."""
        entry = self._entries.get(name)
        if entry is None:
            raise NotFound(
                f"no service is named '{name}'",
                service=name,
                remedy=f"services here: {', '.join(sorted(self._entries)) or 'none'}",
                may_have_run=False,
            )
        return entry

    def lookup(self, target: str) -> Binding | None:
        """What answers `service.method`; None if the service is about to come, so that waiting makes sense.

        Raises `NotFound` for an unknown service or method and `Unavailable` for a service that will not come.
        """
        name, _, method = target.partition(".")
        if not method:
            raise NotFound(f"'{target}' is no address", remedy="write service.method, such as kernel.services")
        entry = self.entry(name)
        if entry.state.passing or entry.is_elsewhere:
            return None
        if not entry.state.answers:
            raise self.unavailable(entry)
        binding = entry.bindings.get(method)
        if binding is None:
            known = ", ".join(sorted(entry.bindings)) or "none"
            raise NotFound(
                f"service '{name}' has no handler '{method}'",
                service=name,
                remedy=f"it has: {known}",
                may_have_run=False,
            )
        return binding

    def unavailable(self, entry: Entry) -> MicrokernelError:
        """Why `entry` does not answer."""
        return Unavailable(
            f"service '{entry.name}' is {entry.state}" + (f": {entry.why}" if entry.why else ""),
            service=entry.name,
            retry_after=1.0 if entry.state.passing else None,
            may_have_run=False,
        )
