"""Bytes reserved, used and free, for each tier of each device. A plain class without a loop."""

from __future__ import annotations

import itertools
from collections import defaultdict

import msgspec

from microkernel.errors import Denied, Invalid, NotFound, Overloaded
from services.memory.messages import (
    Account,
    Holding,
    OwnerUse,
    ReportUse,
    Reservation,
    Reserve,
    Resize,
    Tier,
    in_units,
)

__all__ = ["Accounts"]


class Accounts:
    """Who has reserved what. A reservation is refused before it would take the account over its limit."""

    def __init__(self) -> None:
        self._limits: dict[tuple[str, Tier], int] = {}
        self._reservations: dict[int, Reservation] = {}
        self._uses: dict[tuple[str, str, Tier], ReportUse] = {}  # what each service says that it has, by its name
        self._ids = itertools.count(1)

    def open(self, device: str, tier: Tier, limit: int) -> None:
        """Begin an account of `limit` bytes, or change its limit; what is reserved stays."""
        self._limits[device, tier] = limit

    def limit(self, device: str, tier: Tier) -> int:
        """How many bytes an account has. Raises `NotFound` for one that is not open."""
        limit = self._limits.get((device, tier))
        if limit is None:
            raise NotFound(f"there is no memory account for {device}/{tier}")
        return limit

    def reserve(self, ask: Reserve, owner: str, *, available: int | None = None) -> Reservation:
        """Take bytes for `owner`. `available` is what the device itself says is free, where that is known.

        Raises `Overloaded` that says how much is missing, `NotFound` for an account that is not open, `Invalid`.
        """
        if ask.bytes < 0 or ask.taken < 0 or (ask.at_least is not None and ask.at_least < 0):
            raise Invalid(f"cannot reserve {ask.bytes} bytes", field="bytes")
        given = self._grant(ask.purpose, ask.device, ask.tier, ask.bytes, ask.at_least, available, taken=ask.taken)
        reservation = Reservation(
            id=next(self._ids), owner=owner, purpose=ask.purpose, device=ask.device, tier=ask.tier, bytes=given
        )
        self._reservations[reservation.id] = reservation
        return reservation

    def resize(self, ask: Resize, owner: str, *, available: int | None = None) -> Reservation:
        """Change a reservation. Raises as `reserve` does where it would grow, and then it is as it was."""
        before = self.find(ask.id, owner)
        if ask.bytes < 0:
            raise Invalid(f"cannot reserve {ask.bytes} bytes", field="bytes")
        more = ask.bytes - before.bytes
        if more > 0:
            least = None if ask.at_least is None else max(0, ask.at_least - before.bytes)
            more = self._grant(before.purpose, before.device, before.tier, more, least, available)
        after = msgspec.structs.replace(before, bytes=before.bytes + more)
        self._reservations[ask.id] = after
        return after

    def find(self, number: int, owner: str) -> Reservation:
        """A reservation of `owner`'s. Raises `NotFound`, or `Denied` for what is another's."""
        reservation = self._reservations.get(number)
        if reservation is None:
            raise NotFound(f"there is no reservation {number}")
        if reservation.owner != owner:
            raise Denied(f"reservation {number} is not {owner}'s")
        return reservation

    def report(self, use: ReportUse, service: str) -> None:
        """Take what a service has of a device and tier, instead of what it said before."""
        self.limit(use.device, use.tier)
        self._uses[service, use.device, use.tier] = use

    def release(self, number: int, owner: str) -> Reservation | None:
        """Give back; None if it was given back before. Raises `Denied` for what is another's."""
        reservation = self._reservations.get(number)
        if reservation is not None and reservation.owner != owner:
            raise Denied(f"reservation {number} is not {owner}'s")
        return self._reservations.pop(number, None)

    def release_owner(self, owner: str) -> list[Reservation]:
        """Give back all that `owner` has, and forget what it said that it uses."""
        mine = [reservation for reservation in self._reservations.values() if reservation.owner == owner]
        for reservation in mine:
            del self._reservations[reservation.id]
        for key in [key for key in self._uses if key[0] == owner]:
            del self._uses[key]
        return mine

    def reserved(self, device: str, tier: Tier) -> int:
        """Bytes reserved on one account."""
        return sum(reservation.bytes for reservation in self._of(device, tier))

    def used(self, device: str, tier: Tier) -> int:
        """Bytes in use: what services say that they have, and of those that say nothing what they have reserved."""
        told = {service for service, *account in self._uses if account == [device, tier]}
        silent = sum(each.bytes for each in self._of(device, tier) if each.owner not in told)
        return silent + sum(holding.resident_bytes for holding in self._holdings(device, tier))

    def spare(self, device: str, tier: Tier) -> int:
        """Bytes that pools of fixed size have taken, and could use."""
        return sum(holding.spare_bytes for holding in self._holdings(device, tier))

    def accounts(self) -> list[Account]:
        """All accounts with their reservations and what is in use of them."""
        return [
            Account(
                device=device,
                tier=tier,
                limit_bytes=limit,
                reserved_bytes=self.reserved(device, tier),
                reservations=tuple(self._of(device, tier)),
                used_bytes=self.used(device, tier),
                holdings=tuple(self._holdings(device, tier)),
                owners=_sums(self._holdings(device, tier)),
            )
            for (device, tier), limit in self._limits.items()
        ]

    def _grant(
        self,
        purpose: str,
        device: str,
        tier: Tier,
        size: int,
        least: int | None,
        available: int | None,
        *,
        taken: int = 0,
    ) -> int:
        """How many more bytes may be taken: `size`, or what fits of it from `least` on. Raises `Overloaded`."""
        limit = self.limit(device, tier)
        free = limit - self.reserved(device, tier)
        if available is not None:
            free = min(free, available + taken)
        free = max(0, free)
        if size <= free:
            return size
        if least is not None and least <= free:
            return free
        raise Overloaded(
            f"{purpose} needs {in_units(size if least is None else least)} on {device}, and {in_units(free)} "
            f"of its {in_units(limit)} are free",
            remedy="use a smaller model or a shorter context, or free memory",
        )

    def _of(self, device: str, tier: Tier) -> list[Reservation]:
        return [each for each in self._reservations.values() if each.device == device and each.tier is tier]

    def _holdings(self, device: str, tier: Tier) -> list[Holding]:
        return [
            holding
            for (_, *account), use in self._uses.items()
            if account == [device, tier]
            for holding in use.holdings
        ]


def _sums(holdings: list[Holding]) -> tuple[OwnerUse, ...]:
    """What each owner has in all models together, by name."""
    sums: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for holding in holdings:
        for use in holding.owners:
            of = sums[use.owner]
            of[0], of[1], of[2] = of[0] + use.bytes, of[1] + use.hits, of[2] + use.misses
    return tuple(
        OwnerUse(owner=owner, bytes=size, hits=hits, misses=misses)
        for owner, (size, hits, misses) in sorted(sums.items())
    )
