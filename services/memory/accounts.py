"""Bytes reserved and free, for each tier of each device. A plain class without a loop."""

from __future__ import annotations

import itertools

from microkernel.errors import Denied, Invalid, NotFound, Overloaded
from services.memory.messages import Account, Reservation, Reserve, Tier

__all__ = ["Accounts"]


class Accounts:
    """Who has reserved what. A reservation is refused before it would take the account over its limit."""

    def __init__(self) -> None:
        self._limits: dict[tuple[str, Tier], int] = {}
        self._reservations: dict[int, Reservation] = {}
        self._ids = itertools.count(1)

    def open(self, device: str, tier: Tier, limit: int) -> None:
        """Begin an account of `limit` bytes, or change its limit; what is reserved stays."""
        self._limits[device, tier] = limit

    def reserve(self, ask: Reserve, owner: str, *, available: int | None = None) -> Reservation:
        """Take bytes for `owner`. `available` is what the device itself says is free, where that is known.

        Raises `Overloaded` that says how much is missing, `NotFound` for an account that is not open, `Invalid`.
        """
        if ask.bytes < 0:
            raise Invalid(f"cannot reserve {ask.bytes} bytes", field="bytes")
        limit = self._limits.get((ask.device, ask.tier))
        if limit is None:
            raise NotFound(f"there is no memory account for {ask.device}/{ask.tier}")
        free = limit - self.reserved(ask.device, ask.tier)
        if available is not None:
            free = min(free, available)
        if ask.bytes > free:
            raise Overloaded(
                f"{ask.purpose} needs {in_units(ask.bytes)} on {ask.device}, and {in_units(max(0, free))} "
                f"of its {in_units(limit)} are free",
                remedy="use a smaller model or a shorter context, or free memory",
            )
        reservation = Reservation(
            id=next(self._ids),
            owner=owner,
            purpose=ask.purpose,
            device=ask.device,
            tier=ask.tier,
            bytes=ask.bytes,
        )
        self._reservations[reservation.id] = reservation
        return reservation

    def release(self, number: int, owner: str) -> Reservation | None:
        """Give back; None if it was given back before. Raises `Denied` for what is another's."""
        reservation = self._reservations.get(number)
        if reservation is not None and reservation.owner != owner:
            raise Denied(f"reservation {number} is not {owner}'s")
        return self._reservations.pop(number, None)

    def release_owner(self, owner: str) -> list[Reservation]:
        """Give back all that `owner` has."""
        mine = [reservation for reservation in self._reservations.values() if reservation.owner == owner]
        for reservation in mine:
            del self._reservations[reservation.id]
        return mine

    def reserved(self, device: str, tier: Tier) -> int:
        """Bytes reserved on one account."""
        return sum(
            reservation.bytes
            for reservation in self._reservations.values()
            if reservation.device == device and reservation.tier is tier
        )

    def accounts(self) -> list[Account]:
        """All accounts with their reservations."""
        return [
            Account(
                device=device,
                tier=tier,
                limit_bytes=limit,
                reserved_bytes=self.reserved(device, tier),
                reservations=tuple(
                    reservation
                    for reservation in self._reservations.values()
                    if reservation.device == device and reservation.tier is tier
                ),
            )
            for (device, tier), limit in self._limits.items()
        ]


def in_units(count: int) -> str:
    """Bytes as people read them: `98.4 MB`."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
