"""What a membership of a size takes: memory of a table, work for a probe, time to place and to find a name."""

from __future__ import annotations

import gc
import random
import time
import tracemalloc
from collections.abc import Callable

import msgspec

from benchmarks.cluster.scenarios import card_of
from services.cluster.membership.actions import Probe
from services.cluster.membership.membership import Membership
from services.cluster.messages import Gossip, Update
from services.cluster.names import Kind, Names
from services.cluster.placement import owners

__all__ = ["costs"]

PART = 500
ROUNDS = 5


def costs(nodes: int, *, quick: bool = False) -> dict[str, float]:
    """Seconds and bytes, each the least of a few rounds: what is more is the machine's."""
    times = 200 if quick else 2000
    return {
        "table bytes": float(_table_bytes(nodes)),
        "probe": _probe(nodes, times),
        "owners": _owners(nodes, max(5, times // 20)),
        "name one has": _name(nodes, times, "own-node{:04}"),
        "name all have": _name(nodes, max(5, times // 20), "inference"),
    }


def _told(nodes: int) -> list[bytes]:
    """What is told of so many, in parts, as it comes from a link: every node's strings are its own."""
    parts = []
    for start in range(0, nodes, PART):
        updates = [
            Update(
                node=name,
                incarnation=1,
                life=1,
                address=_address(name),
                version="0.1.0",
                card=msgspec.structs.replace(card_of(name), edition=1),
            )
            for name in (f"node{place:04}" for place in range(start, min(start + PART, nodes)))
        ]
        parts.append(msgspec.json.encode(Gossip(source="before", incarnation=1, life=1, updates=tuple(updates))))
    return parts


def _address(name: str) -> str:
    return f"wss://{name}.cluster.example:7070/mk"


def _membership(parts: list[bytes], name: str = "node0000") -> Membership:
    membership = Membership(name, 1, _address(name), now=0.0, chance=random.Random(0), card=card_of(name))
    for part in parts:
        membership.joined(msgspec.json.decode(part, type=Gossip), 0.0)
    return membership


def _table_bytes(nodes: int) -> int:
    parts = _told(nodes)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    membership = _membership(parts)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(membership) >= nodes
    return after - before


def _probe(nodes: int, times: int) -> float:
    """One probe, of the node that asks and of the one that answers, without encoding and sending."""
    parts = _told(nodes)
    asker, other = _membership(parts), _membership(parts, "node0001")

    def run() -> float:
        done = 0
        now = asker.due()
        began = time.process_time()
        while done < times:
            now = max(now, asker.due())
            for action in asker.tick(now):
                if isinstance(action, Probe):
                    other.heard(action.gossip, now)
                    answer = other.gossip_to("node0000")
                    asker.answered(action.node, 1, 0.001, now, msgspec.structs.replace(answer, source=action.node))
                    done += 1
        return (time.process_time() - began) / done

    return min(run() for _ in range(ROUNDS))


def _owners(nodes: int, times: int) -> float:
    members = _membership(_told(nodes)).members()
    return _least(lambda place: owners(f"context-{place}", members, 3), times)


def _name(nodes: int, times: int, name: str) -> float:
    """A service is looked up in a name space of ten for each node."""
    names = Names()
    for member in _membership(_told(nodes)).members():
        names.changed(member)
    wanted = [name.format(place % nodes) for place in range(times)]
    return _least(lambda place: names.where(Kind.SERVICE, wanted[place]), times)


def _least(call: Callable[[int], object], times: int) -> float:
    """Seconds of one call."""
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for place in range(times):
            call(place)
        taken.append((time.perf_counter() - began) / times)
    return min(taken)
