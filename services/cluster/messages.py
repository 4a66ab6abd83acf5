"""What the cluster service answers: who is in the cluster, and what nodes tell each other about that."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

from microkernel.message import Message

__all__ = [
    "MOST_UPDATES",
    "NEWEST_INCARNATION",
    "Answer",
    "Card",
    "ClusterNode",
    "Gossip",
    "Invitation",
    "Invite",
    "Join",
    "Joined",
    "Load",
    "Mark",
    "Member",
    "MemberState",
    "NodeName",
    "Reach",
    "Removed",
    "Renew",
    "Signed",
    "Summary",
    "Update",
]

NEWEST_INCARNATION = 2**53 - 1  # what every JSON reader can count to
MOST_UPDATES = 512  # in one message; a table that differs in more is told in several
MOST_MARKS = 8192  # twice the members that a table takes: the other half is for those that are dead

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Words = Annotated[tuple[Word, ...], msgspec.Meta(max_length=256)]
Address = Annotated[str, msgspec.Meta(max_length=256)]
Incarnation = Annotated[int, msgspec.Meta(ge=0, le=NEWEST_INCARNATION)]
Protocol = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class MemberState(StrEnum):
    """Where a member stands.

    `SUSPECT`: it did not answer, and has a moment to say that it is there. `QUARANTINED`: it was suspect too often, and
    is to be quiet for a while. `DRAINING`: it ends what it has and takes nothing new. `DEAD`: this life of it is over,
    whether it knows or not. `LEFT`: it said so itself.
    """

    ALIVE = "alive"
    SUSPECT = "suspect"
    QUARANTINED = "quarantined"
    DRAINING = "draining"
    DEAD = "dead"
    LEFT = "left"

    @property
    def works(self) -> bool:
        """Whether it may be given new work."""
        return self is MemberState.ALIVE

    @property
    def over(self) -> bool:
        """Whether this life of the member has ended."""
        return self is MemberState.DEAD or self is MemberState.LEFT


class Card(Message, omit_defaults=True):
    """What a member has to offer, by its own word.

    `services` answer there; those in `replicated` are for the cluster to place, and could be there.

    Its `edition` counts the changes within one life; 0 is the card of one that has not told yet. `weight` is how much
    work it should get next to others, 0 for none.
    """

    edition: Incarnation = 0
    services: Words = ()
    replicated: Words = ()
    devices: Words = ()
    models: Words = ()
    cores: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 0
    weight: Amount = 1.0


class Load(Message, omit_defaults=True):
    """How busy a member was when it answered last: calls that run and wait, shares (0 to 1) of its cores and memory."""

    calls: Amount = 0.0
    cores: Amount = 0.0
    memory: Amount = 0.0


class Member(Message, kw_only=True):
    """One node, as another one sees it.

    `incarnation` grows whenever the node contradicts what is told of it. `life` is the incarnation with which it came:
    with another life it is another process, or one that ended all that it did for others. It speaks the protocols from
    `protocol_min` to `protocol`.
    """

    node: str
    incarnation: int
    life: int
    state: MemberState
    address: str
    version: str = ""
    protocol: int = 1
    protocol_min: int = 1
    card: Card = Card()
    load: Load = Load()


class Update(Message, kw_only=True, omit_defaults=True):
    """What one node tells about another, or about itself. No node says of another that it is quarantined.

    `by` is who says so, where it is no good news: of a suspect each one that got no answer from it. Without `card`,
    that is as it was.
    """

    node: Name
    incarnation: Incarnation
    life: Incarnation
    state: MemberState = MemberState.ALIVE
    address: Address = ""
    version: Annotated[str, msgspec.Meta(max_length=64)] = ""
    protocol: Protocol = 1
    protocol_min: Protocol = 1
    card: Card | None = None
    by: Annotated[tuple[Name, ...], msgspec.Meta(max_length=8)] = ()


class Gossip(Message, kw_only=True, omit_defaults=True):
    """What a node tells whenever it speaks with another: who it is, and what is new.

    `edition` is that of its card: who has an older one asks for it. `living` is how many members it takes for
    reachable, itself included. `wanted` are those of which it would like to be told in turn. What answers a summary is
    `compared`, and `more` if not all had room.
    """

    source: Name
    incarnation: Incarnation
    life: Incarnation
    state: MemberState = MemberState.ALIVE
    edition: Incarnation = 0
    living: Annotated[int, msgspec.Meta(ge=1, le=MOST_MARKS)] = 1
    updates: Annotated[tuple[Update, ...], msgspec.Meta(max_length=MOST_UPDATES)] = ()
    wanted: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MOST_UPDATES)] = ()
    compared: bool = False
    more: bool = False


class Mark(Message, array_like=True):
    """What a node knows of another, in short: enough to see who knows more. `rank` orders states, 3 is an end."""

    node: Name
    incarnation: Incarnation
    life: Incarnation
    rank: Annotated[int, msgspec.Meta(ge=0, le=3)]
    edition: Incarnation = 0


class Summary(Message, kw_only=True):
    """All that a node knows, in short: whoever gets it answers with what it knows better, and asks for the rest."""

    gossip: Gossip
    marks: Annotated[tuple[Mark, ...], msgspec.Meta(max_length=MOST_MARKS)] = ()


class Answer(Message, kw_only=True, omit_defaults=True):
    """What a node answers to a probe: its own incarnation, how busy it is, and what is new."""

    incarnation: Incarnation
    load: Load = Load()
    gossip: Gossip


class Reach(Message):
    """Probe `node` for another one, for `timeout` seconds; the answer is whether it answered."""

    node: Name
    timeout: Annotated[float, msgspec.Meta(gt=0, le=30)]


class Join(Message, kw_only=True):
    """Ask to be let into the cluster, with a join token; where there is TLS with a certificate `request` (PEM)."""

    node: Name
    protocol: Protocol
    protocol_min: Protocol
    version: Annotated[str, msgspec.Meta(max_length=64)] = ""
    request: Annotated[str, msgspec.Meta(max_length=8192)] | None = None


class Signed(Message, kw_only=True):
    """The certificate of `node` and the roots that the cluster trusts, PEM; times are Unix times in seconds."""

    node: str
    serial: str
    certificate: str
    roots: tuple[str, ...]
    issued: float
    expires: float


class Removed(Message):
    """A node was removed `at` that Unix time, by the authority's clock: older certificates of it are refused."""

    node: Name
    at: float


class Joined(Message, kw_only=True):
    """A node is in: the cluster's secret, where its members are, and where there is TLS its certificate.

    `removed` are nodes that are to be refused.
    """

    secret: str
    seeds: tuple[str, ...]
    certificate: Signed | None = None
    removed: tuple[Removed, ...] = ()


class Renew(Message):
    """Ask for the next certificate of the node that asks."""

    request: Annotated[str, msgspec.Meta(max_length=8192)]


class Invite(Message, kw_only=True):
    """Make a join token, which is good for `expires_in` seconds."""

    expires_in: Annotated[float, msgspec.Meta(gt=0, le=30 * 86400)] = 3600.0


class Invitation(Message, kw_only=True):
    """Where to come, and the join token to bring. `expires` is Unix time in seconds."""

    url: str
    token: str
    expires: float | None

    def __repr__(self) -> str:
        return f"Invitation(url={self.url!r}, …)"  # the token is not for a log


class NodeName(Message):
    """A node by name."""

    node: str


class ClusterNode(Message, kw_only=True):
    """One line of `nodes`. `is_here` is the node that answers; `round_trip` is in seconds, None where not measured.

    `in_flight` are calls and streams that it had when it answered last.
    """

    node: str
    state: MemberState
    is_here: bool
    incarnation: int
    address: str
    version: str
    services: tuple[str, ...]
    models: tuple[str, ...]
    devices: tuple[str, ...]
    cores: int
    in_flight: int
    round_trip: float | None = None
