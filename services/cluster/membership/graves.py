"""Which incarnations are over for good, so that old gossip brings no ghost back; and where the dead were. Sans-IO."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from services.cluster.messages import MemberState

__all__ = ["Grave", "Graves", "Lost", "LostNode"]


class Grave(msgspec.Struct, frozen=True, gc=False):
    """No life of a node that began with `incarnation` or before is believed again."""

    incarnation: int
    state: MemberState
    address: str
    by: str
    since: float


class Graves:
    """By node; of more than `most`, the oldest are forgotten, and each after `kept` seconds."""

    def __init__(self, most: int, kept: float) -> None:
        self._most = most
        self._kept = kept
        self._graves: OrderedDict[str, Grave] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graves)

    def get(self, node: str) -> Grave | None:
        """The newest of the node."""
        return self._graves.get(node)

    def holds(self, node: str, life: int) -> bool:
        """Whether a life of the node that began with incarnation `life` is over."""
        grave = self._graves.get(node)
        return grave is not None and life <= grave.incarnation

    def dig(self, node: str, grave: Grave) -> None:
        """The node's last life is over."""
        self._graves[node] = grave
        self._graves.move_to_end(node)
        while len(self._graves) > self._most:
            self._graves.popitem(last=False)

    def sweep(self, now: float) -> None:
        """Forget those that were kept for long enough."""
        while self._graves:
            node, grave = next(iter(self._graves.items()))
            if now - grave.since < self._kept:
                return
            del self._graves[node]

    def clear(self) -> None:
        """Forget all."""
        self._graves.clear()


class LostNode(msgspec.Struct, frozen=True, gc=False):
    """Where a node that is dead could be reached, and when it was last believed in."""

    address: str
    since: float


class Lost:
    """Nodes that may come back, or that only this one takes for dead: worth a try now and then."""

    def __init__(self, most: int, tried: float) -> None:
        self._most = most
        self._tried = tried  # seconds
        self._lost: OrderedDict[str, LostNode] = OrderedDict()

    def __len__(self) -> int:
        return len(self._lost)

    def add(self, node: str, address: str, now: float) -> None:
        """It is dead."""
        self._lost[node] = LostNode(address, now)
        self._lost.move_to_end(node)
        while len(self._lost) > self._most:
            self._lost.popitem(last=False)

    def get(self, node: str) -> LostNode | None:
        """Where it could be reached."""
        return self._lost.get(node)

    def found(self, node: str) -> None:
        """It is there, or said that it goes."""
        self._lost.pop(node, None)

    def names(self) -> list[str]:
        """Of all."""
        return list(self._lost)

    def nodes(self, now: float) -> list[tuple[str, LostNode]]:
        """All that are still tried."""
        while self._lost:
            node, first = next(iter(self._lost.items()))
            if now - first.since < self._tried:
                break
            del self._lost[node]
        return list(self._lost.items())
