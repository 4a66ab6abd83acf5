"""What a membership asks to be done, and what it tells."""

from __future__ import annotations

import msgspec

from services.cluster.messages import Gossip, Member, Summary

__all__ = ["Action", "Changed", "Exchange", "Fenced", "Probe", "ProbeThrough", "Tell"]


class Probe(msgspec.Struct, frozen=True):
    """Ask `node` whether it is there, and wait `timeout` seconds for its answer.

    That is longer than the node has to prove itself: a late answer still tells how slow it is. Several may be under way
    to the same node. Each ends in `answered`, `failed` or `link_lost`.
    """

    node: str
    timeout: float
    gossip: Gossip


class ProbeThrough(msgspec.Struct, frozen=True):
    """Ask `via` to probe `node` with `timeout` seconds of its own.

    What it says is `answered` with `rtt` None, or `unreached`. Where `via` itself does not answer, nothing is told.
    """

    node: str
    via: str
    timeout: float


class Exchange(msgspec.Struct, frozen=True):
    """Send the summary to `node` at `address`; its answer is `heard`. It may well be down: nobody waits for it."""

    node: str
    address: str
    summary: Summary


class Tell(msgspec.Struct, frozen=True):
    """Send the gossip to `node`, which asked for it; nothing comes back."""

    node: str
    gossip: Gossip


class Changed(msgspec.Struct, frozen=True):
    """A member is no longer as it was; `before` is None for a new one. Of this node: keep its incarnation."""

    member: Member
    before: Member | None


class Fenced(msgspec.Struct, frozen=True):
    """`by` says that this node's life of this incarnation is over: end all work for others, wait, and `rejoin`.

    `wait` (seconds) grows with each time in a row. Where there is a `rival`, another process at that address has this
    node's name: do not come back while it is there.
    """

    incarnation: int
    by: str
    wait: float
    rival: str | None = None


Action = Probe | ProbeThrough | Exchange | Tell | Changed | Fenced
