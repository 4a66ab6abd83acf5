"""Whether two nodes can work together, and if not, why."""

from __future__ import annotations

from typing import Protocol

__all__ = ["PROTOCOL", "PROTOCOL_MIN", "Speaker", "disagreement", "speak"]

PROTOCOL = PROTOCOL_MIN = 1  # of nodes with each other: what this version speaks


class Speaker(Protocol):
    """A member, or what is told of one: it speaks the protocols from `protocol_min` to `protocol`."""

    @property
    def node(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def protocol(self) -> int: ...
    @property
    def protocol_min(self) -> int: ...


def speak(one: Speaker, other: Speaker) -> bool:
    """Whether there is a protocol that both speak."""
    return max(one.protocol_min, other.protocol_min) <= min(one.protocol, other.protocol)


def disagreement(one: Speaker, other: Speaker) -> str | None:
    """Why the two cannot work together, as a sentence for people that says what to do; None where they can."""
    for each in (one, other):
        if each.protocol_min > each.protocol:
            return f"{_named(each)} says that it speaks protocols from {each.protocol_min} to {each.protocol}: none"
    if speak(one, other):
        return None
    older, newer = (one, other) if one.protocol < other.protocol else (other, one)
    return (
        f"{_named(older)} speaks protocol {_range(older)}, {_named(newer)} speaks {_range(newer)}: "
        f"update {older.node}, or run an older version on {newer.node}"
    )


def _named(each: Speaker) -> str:
    return f"{each.node} (version {each.version})" if each.version else each.node


def _range(each: Speaker) -> str:
    return str(each.protocol) if each.protocol_min == each.protocol else f"{each.protocol_min} to {each.protocol}"
