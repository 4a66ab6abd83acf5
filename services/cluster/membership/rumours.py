"""News that is passed on with other messages, each a bounded number of times. Sans-IO (hot: twice a probe).

Piggybacked dissemination after SWIM (Das, Gupta and Motivala, DSN 2002): what was told least goes first, and nothing is
told more often than a multiple of the logarithm of the members, after which all have it with high probability.
"""

from __future__ import annotations

import math

import msgspec

from services.cluster.messages import Update

__all__ = ["Rumours", "size_of"]

MOST_TIMES = 64  # that anything is told
LEAST_SIZE = 60  # bytes of an update

_encoder = msgspec.json.Encoder()


def size_of(update: Update) -> int:
    """Bytes that it takes in a message."""
    return len(_encoder.encode(update)) + 1


class Rumours:
    """One piece of news a node: a newer one takes the place of what was told before."""

    def __init__(self, factor: float, entries: int, room: int) -> None:
        """A message has room for `entries` of `room` bytes; for one it has, however long that is."""
        self._factor = factor
        self._entries = entries
        self._room = room
        self._told: dict[str, int] = {}
        self._by_times: list[dict[str, tuple[Update, int]]] = [{} for _ in range(MOST_TIMES)]

    def __len__(self) -> int:
        return len(self._told)

    def put(self, update: Update) -> None:
        """There is news."""
        self.drop(update.node)
        self._told[update.node] = 0
        self._by_times[0][update.node] = (update, size_of(update))

    def drop(self, node: str) -> None:
        """What was told of the node is no news."""
        times = self._told.pop(node, None)
        if times is not None:
            del self._by_times[times][node]

    def pick(self, members: int, without: str = "") -> list[Update]:
        """What the next message takes along, in a cluster of so many; nothing about `without`."""
        if not self._told:
            return []
        limit = min(MOST_TIMES, math.ceil(self._factor * math.log10(members + 1)))
        chosen = self._choose(limit, without)
        for update in chosen:
            self._tell(update.node, limit)
        return chosen

    def _choose(self, limit: int, without: str) -> list[Update]:
        """What was told least; of equals, the newest."""
        chosen: list[Update] = []
        room = self._room
        for rumours in self._by_times[:limit]:
            for node in reversed(rumours):
                update, size = rumours[node]
                if node != without and (size <= room or not chosen):
                    chosen.append(update)
                    room -= size
                    if len(chosen) == self._entries or room < LEAST_SIZE:
                        return chosen
        return chosen

    def _tell(self, node: str, limit: int) -> None:
        times = self._told[node]
        entry = self._by_times[times].pop(node)
        if times + 1 >= limit:
            del self._told[node]
        else:
            self._told[node] = times + 1
            self._by_times[times + 1][node] = entry
