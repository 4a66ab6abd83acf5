"""The one name space: which members have what, kept up by what changes. Sans-IO (hot: once a remote call)."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from services.cluster.messages import Card, Member

__all__ = ["Kind", "Names"]


class Kind(StrEnum):
    """What has a name."""

    SERVICE = "service"
    DEVICE = "device"
    MODEL = "model"


class Names:
    """Members by what is on their cards. Those that are gone have nothing; who is to get work, is for the caller."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._where: dict[tuple[Kind, str], dict[str, None]] = {}

    def changed(self, member: Member) -> None:
        """A member is as told from now on."""
        before = self._members.get(member.node)
        had = set() if before is None else set(_names(before.card))
        has = set() if member.state.over else set(_names(member.card))
        for name in had - has:
            nodes = self._where[name]
            del nodes[member.node]
            if not nodes:
                del self._where[name]
        for name in sorted(has - had):
            self._where.setdefault(name, {})[member.node] = None
        if member.state.over:
            self._members.pop(member.node, None)
        else:
            self._members[member.node] = member

    def where(self, kind: Kind, name: str) -> list[Member]:
        """The members that have it, in the order in which they were found to; all states but those that are over."""
        members = self._members
        return [members[node] for node in self._where.get((kind, name), ())]

    def names(self, kind: Kind) -> list[str]:
        """All names of a kind, in order."""
        return sorted(name for of, name in self._where if of is kind)


def _names(card: Card) -> Iterator[tuple[Kind, str]]:
    for kind, words in ((Kind.SERVICE, card.services), (Kind.DEVICE, card.devices), (Kind.MODEL, card.models)):
        for word in words:
            yield kind, word
