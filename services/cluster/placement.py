"""On which members something is to be: every node comes to the same answer, without asking. Sans-IO (hot: once a call).

Rendezvous hashing (Thaler and Ravishankar, IEEE/ACM ToN 1998): each pair of a thing and a member has a number, and the
highest have it. When a member goes, only what it had moves; when one comes, only what it gets. Weights as in
Schindelhauer and Schomaker (SPAA 2005): a member's share is proportional to its weight, and only it gains when that
grows.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nlargest
from math import inf, log

import xxhash

from services.cluster.messages import Member, MemberState

__all__ = ["MOST_REPLICAS", "owners"]

MOST_REPLICAS = 64
ALIVE = MemberState.ALIVE  # the one state in which a member may be given new work
STEPS = 1 << 52  # a hash of more bits than that is rounded to 1, of which the logarithm is 0

_hash = xxhash.xxh3_64_intdigest  # not against an enemy: who may place things, may choose their names


def owners(service: str, members: Iterable[Member], replicas: int = 1) -> list[str]:
    """The names of the members that should have `service`, or anything of that name; the first is the first choice.

    Members that may have no work, or have no weight, are passed over. So it may be fewer than `replicas`, or none.
    """
    seed = _hash(service.encode(errors="surrogatepass"))
    scored = [
        (_score(weight, _hash(each.node.encode(), seed)), each.node)
        for each in members
        if each.state is ALIVE and 0.0 < (weight := each.card.weight) < inf
    ]
    return [node for _, node in nlargest(min(replicas, MOST_REPLICAS), scored)]


def _score(weight: float, drawn: int) -> float:
    """A number from 0 up, by what the pair has drawn; the weight is the share of first places that it wins."""
    return -weight / log(((drawn >> 12) + 0.5) / STEPS)
