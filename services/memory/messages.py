"""What the memory service answers: reservations against the account of a device and tier."""

from __future__ import annotations

from enum import StrEnum

from microkernel.message import Message

__all__ = ["Account", "Release", "Reservation", "Reserve", "Tier"]


class Tier(StrEnum):
    """Where bytes live."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


class Reserve(Message, kw_only=True):
    """Ask for `bytes` on a device's tier before taking them; refused with `OVERLOADED` where they do not fit.

    `purpose` says what for, as a person reads it: "weights of smollm2". They are counted for who calls.
    """

    purpose: str
    bytes: int
    device: str = "cpu0"
    tier: Tier = Tier.DEVICE


class Reservation(Message, kw_only=True):
    """Bytes that are counted until they are released or their owner's service stops."""

    id: int
    owner: str
    purpose: str
    device: str
    tier: Tier
    bytes: int


class Release(Message):
    """Give a reservation back; giving it back twice is harmless."""

    id: int


class Account(Message, kw_only=True):
    """All bytes of one tier of one device."""

    device: str
    tier: Tier
    limit_bytes: int
    reserved_bytes: int
    reservations: tuple[Reservation, ...] = ()
