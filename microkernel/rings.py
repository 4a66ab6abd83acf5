"""Events that are kept for those who come later, by patterns of subjects. Sans-IO (hot: once a kept event).

A ring holds the last events of its pattern, by number, bytes and age, and remembers the offset of the last one that it
has let go: whoever has seen all up to there gets the rest without a gap, everybody else is told `Gone`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import msgspec

from microkernel.errors import Gone, Invalid, PreconditionFailed
from microkernel.message import Message
from microkernel.subjects import check_pattern, check_subject, covers

if TYPE_CHECKING:
    from microkernel.events import Event

__all__ = ["DEFAULT_RINGS", "Ring", "RingLimits", "replay", "with_defaults"]


class RingLimits(Message, forbid_unknown_fields=True):
    """Keep the events of `pattern` for replay: so many, so many bytes (where a body's size is known), for so many
    seconds. `events` 0 keeps none.
    """

    pattern: str
    events: Annotated[int, msgspec.Meta(ge=0)] = 1024
    bytes: Annotated[int, msgspec.Meta(ge=0)] = 1024 * 1024
    seconds: Annotated[float, msgspec.Meta(gt=0)] = 3600.0

    def __post_init__(self) -> None:
        try:
            check_pattern(self.pattern)
        except Invalid as error:
            raise ValueError(error.message) from error  # msgspec adds the path to it


DEFAULT_RINGS = (
    RingLimits("service.>"),
    RingLimits("kernel.>"),
    RingLimits("audit.>"),
    RingLimits("dead.>", events=256),
)
"""What a node tells of itself: rare events, for which a watcher comes when they have happened."""


def with_defaults(rings: Iterable[RingLimits]) -> tuple[RingLimits, ...]:
    """`DEFAULT_RINGS` and `rings`, which replace those of the same pattern."""
    return tuple({ring.pattern: ring for ring in (*DEFAULT_RINGS, *rings)}.values())


class Ring:
    """The last events of one pattern. `lost` is the offset of the last one let go, 0 for none."""

    __slots__ = ("_bytes", "_kept", "_limits", "lost", "names")

    def __init__(self, limits: RingLimits) -> None:
        self.names = check_pattern(limits.pattern)
        self.lost = 0
        self._limits = limits
        self._kept: deque[tuple[float, int, Event]] = deque()
        self._bytes = 0

    @property
    def pattern(self) -> str:
        """The subjects that are kept."""
        return self._limits.pattern

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, event: Event, size: int, now: float) -> None:
        """Add the newest event, of `size` bytes, at `now` in seconds; the oldest make room."""
        self._kept.append((now, size, event))
        self._bytes += size
        limits = self._limits
        while len(self._kept) > limits.events or self._bytes > limits.bytes:
            self._let_go()
        self.expire(now)

    def since(self, offset: int, now: float) -> list[Event]:
        """All events after `offset`, oldest first. Raises `Gone` that names the oldest offset kept."""
        self.expire(now)
        if offset < self.lost:
            oldest = f"the oldest kept is {self._kept[0][2].offset}" if self._kept else "none is kept"
            raise Gone(
                f"the events of {self.pattern} after offset {offset} are not all kept: {oldest}",
                remedy=f"read the present state, then subscribe since {self.lost} or later, or without `since`",
            )
        return [event for _, _, event in self._kept if event.offset > offset]

    def expire(self, now: float) -> None:
        """Let go of what is too old."""
        while self._kept and self._kept[0][0] <= now - self._limits.seconds:
            self._let_go()

    def _let_go(self) -> None:
        _, size, event = self._kept.popleft()
        self._bytes -= size
        self.lost = event.offset


def replay(rings: Iterable[Ring], pattern: str, since: int, newest: int, now: float) -> list[Event]:
    """The events of `pattern` after offset `since`, without a gap; `newest` is the last offset that was given.

    Raises `Gone` when some are no longer kept, or `since` is of another epoch, and `PreconditionFailed` when nobody
    keeps such events.
    """
    names = check_pattern(pattern)
    if since < 0:
        raise Invalid(f"an offset is 0 (from the first event on) or more, not {since}", field="since")
    if since > newest:
        raise Gone(
            f"offset {since} is not of this epoch: its last event is {newest}",
            remedy="the node was booted anew: read the present state, then subscribe without `since`",
        )
    fit = [ring for ring in rings if covers(ring.names, names)]
    if not fit:
        raise PreconditionFailed(
            f"the events of {pattern} are not kept",
            remedy=f'subscribe without `since`, or have them kept: [[rings]] with pattern = "{pattern}"',
        )
    for ring in fit:
        ring.expire(now)
    furthest = min(fit, key=lambda ring: ring.lost)
    return [event for event in furthest.since(since, now) if covers(names, check_subject(event.subject))]
