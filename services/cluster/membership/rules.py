"""The numbers of membership, in one place, so that a test may have others."""

from __future__ import annotations

import msgspec

__all__ = ["Rules"]


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """Times are in seconds. What is said here holds at a multiplier of 1, for a node that keeps up with its own work.

    *Probes.* Within a `period` each of up to `everyone` members probes each other one; where there are more, it probes
    `few`, so a node's load does not depend on how many there are. An answer may take as long as the peer's round trips
    say, but no less than `floor` and no more than `ceiling`; `first` where there were none. Then the probe is repeated,
    and `helpers` others are asked to try.

    *Suspicion* lasts `suspicion` periods times the decimal logarithm of the members, and up to `doubt` times that where
    nobody else suspects the same; `confirmations` others are enough for the shortest.

    *Quarantine.* Who was suspect `falls` times within `falls_within` gets no work until nothing happened for `quiet`;
    each further time twice as long, up to `quiet_most`; after `forgiven` it begins anew.

    *Gossip.* News goes with `gossip_factor` messages for each decimal digit of the number of members. A message has
    room for `gossip_entries` and `gossip_bytes`. Tables are compared every `exchange`, `exchange_bytes` at once.

    *The dead.* They stand in the table for `shown`, and are tried again for `dialled`: each every `dial`, or an eighth
    of how long it is dead, by all others together. Graves are kept for `buried`, up to `most_graves`.

    A node that was away for `away` does not hold that time against others.
    """

    period: float = 0.5
    everyone: int = 8
    few: int = 3
    floor: float = 0.2
    ceiling: float = 1.0
    first: float = 0.25
    helpers: int = 3

    suspicion: float = 4.0
    doubt: float = 4.0
    confirmations: int = 3

    falls: int = 3
    falls_within: float = 60.0
    quiet: float = 30.0
    quiet_most: float = 600.0
    forgiven: float = 3600.0

    gossip_factor: float = 4.0
    gossip_entries: int = 32
    gossip_bytes: int = 6000
    exchange: float = 30.0
    exchange_bytes: int = 256 * 1024

    shown: float = 30.0
    dial: float = 2.0
    dialled: float = 3600.0
    buried: float = 86400.0
    most_graves: int = 4096
    most_members: int = 4096

    away: float = 0.25
