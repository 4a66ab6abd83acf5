"""Which policies there are: those that came with the system, and those of installed plugins.

A plugin is a subclass of `Policy` at an entry point of the group `microkernel.policies`; its name is the class's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points

from microkernel.errors import Invalid, NotFound
from microkernel.policy import Policy
from services.scheduler.policies.deadline import Deadline
from services.scheduler.policies.fair import Fair
from services.scheduler.policies.fifo import Fifo
from services.scheduler.policies.priority import Priority

__all__ = ["GROUP", "Policies"]

GROUP = "microkernel.policies"


class Policies:
    """Policies by name. `weights` are those of `fair`, and may change."""

    def __init__(self, weights: Mapping[str, float], *, aging: float) -> None:
        """A second of waiting is worth `aging` nice values under `priority`."""
        self._made: dict[str, type[Policy]] = {kind.name: kind for kind in (Fair, Priority, Fifo, Deadline)}
        self._weights = weights
        self._aging = aging
        self.broken: dict[str, str] = {}

    def discover(self) -> None:
        """Find those of plugins; may import, so it is for a thread. One that is broken is named, and stops nobody."""
        for point in entry_points(group=GROUP):
            try:
                kind = point.load()
                self._check(kind)
                kind().fresh()
            except Exception as error:  # noqa: BLE001 - whatever a plugin raises, the others are there
                self.broken[point.name] = f"{type(error).__name__}: {error}"
            else:
                self._made[kind.name] = kind

    def names(self) -> tuple[str, ...]:
        """All there are."""
        return tuple(self._made)

    def make(self, name: str) -> Policy:
        """A new one. Raises `NotFound`."""
        kind = self._made.get(name)
        if kind is None:
            raise NotFound(f"there is no policy '{name}'", field="name", remedy=f"policies: {', '.join(self._made)}")
        if kind is Fair:
            return Fair(self._weights)
        return Priority(aging=self._aging) if kind is Priority else kind()

    def _check(self, kind: object) -> None:
        if not (isinstance(kind, type) and issubclass(kind, Policy)):
            raise Invalid(f"{kind!r} is not a Policy")
        if not kind.name or kind.name in self._made:
            raise Invalid(f"a policy needs a name of its own, not '{kind.name}'")
