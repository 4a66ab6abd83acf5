"""What the memory service answers: reservations, quotas and use of each device's tiers; and how short memory is."""

from __future__ import annotations

from enum import IntEnum, StrEnum

from microkernel.message import Message

__all__ = [
    "EVERYBODY",
    "Account",
    "Holding",
    "OwnerUse",
    "Pressure",
    "Quota",
    "Quotas",
    "Release",
    "ReportUse",
    "Reservation",
    "Reserve",
    "Resize",
    "Rung",
    "SetQuota",
    "Tier",
    "in_units",
]

EVERYBODY = "*"  # as an owner: all who have no quota of their own


class Tier(StrEnum):
    """Where bytes live."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


class Rung(IntEnum):
    """How short memory is; each rung does what those below it do, too.

    `DROP`: cached pages that nobody holds are forgotten. `MOVE`: contexts that rest and models that nobody asks leave
    the device. `CLOSE`: nothing new begins. `PAUSE`: what runs is paused, the cheapest first.
    """

    CALM = 0
    DROP = 1
    MOVE = 2
    CLOSE = 3
    PAUSE = 4


class Reserve(Message, kw_only=True):
    """Ask for `bytes` on a device's tier before taking them; refused with `OVERLOADED` where they do not fit.

    `purpose` says what for, as a person reads it: "weights of smollm2". They are counted for who calls. Where
    `at_least` bytes fit and `bytes` do not, as many are given as fit. `taken` of the bytes are in use already (files of
    an earlier start), so they need not be free.
    """

    purpose: str
    bytes: int
    device: str = "cpu0"
    tier: Tier = Tier.DEVICE
    at_least: int | None = None
    taken: int = 0


class Reservation(Message, kw_only=True):
    """Bytes that are counted until they are released or their owner's service stops."""

    id: int
    owner: str
    purpose: str
    device: str
    tier: Tier
    bytes: int


class Resize(Message, kw_only=True):
    """Change a reservation of one's own to `bytes`; `OVERLOADED` where it would grow by more than is free.

    Where `at_least` bytes fit and `bytes` do not, it becomes as large as fits.
    """

    id: int
    bytes: int
    at_least: int | None = None


class Release(Message):
    """Give a reservation back; giving it back twice is harmless."""

    id: int


class SetQuota(Message, kw_only=True):
    """Let `owner` have so much of each device for its pages: bytes (a whole number), or a share (0.25) of its account.

    None takes back what was set live: what the settings say holds again. `owner` "*" is all who have none of their own.
    """

    owner: str
    quota: int | float | None


class Quota(Message, kw_only=True):
    """What one owner may have on one device, in bytes; None: as much as there is. `set` is "settings" or "live"."""

    owner: str
    device: str
    bytes: int | None
    set: str = "settings"


class Quotas(Message):
    """All quotas, as they are now; told on `memory.quotas` when one changes."""

    quotas: tuple[Quota, ...]


class OwnerUse(Message, kw_only=True):
    """Bytes of pages on one owner's account; tokens of its prompts that were found in the cache (`hits`) or not."""

    owner: str
    bytes: int
    hits: int = 0
    misses: int = 0
    quota: int | None = None


class Holding(Message, kw_only=True):
    """What one model takes on its device, in bytes.

    `weight_bytes` are those of its adapters too. A model that guesses for it counts in `resident_bytes` only.
    Pages are held by sequences, cached for later, or free; free ones count in `resident_bytes` only until their memory
    was given back. Of a pool whose size is fixed, as on accelerators, those that are not held are `spare_bytes`, and no
    reason to be short of memory. `resident_bytes` is what all of it really takes, but for what is spare.
    """

    name: str
    device: str
    weight_bytes: int = 0
    buffer_bytes: int = 0
    held_bytes: int = 0
    cached_bytes: int = 0
    free_bytes: int = 0
    resident_bytes: int = 0
    spare_bytes: int = 0
    owners: tuple[OwnerUse, ...] = ()


class ReportUse(Message, kw_only=True):
    """What a service has of `device` and tier: all of it, each time."""

    device: str
    tier: Tier = Tier.DEVICE
    holdings: tuple[Holding, ...] = ()


class Pressure(Message, kw_only=True):
    """How short the memory of a device is; told on `memory.pressure` when the rung changes.

    `used` are the bytes that this node takes, `limit` those it could have: what it takes, what is free, and what pools
    of fixed size have to spare. To be on a lower rung `excess` bytes have to go.
    """

    device: str
    rung: Rung
    used: int
    limit: int
    excess: int = 0


class Account(Message, kw_only=True):
    """All bytes of one tier of one device: what is reserved, what is in use of it, and by whom."""

    device: str
    tier: Tier
    limit_bytes: int
    reserved_bytes: int
    reservations: tuple[Reservation, ...] = ()
    used_bytes: int = 0
    rung: Rung = Rung.CALM
    holdings: tuple[Holding, ...] = ()
    owners: tuple[OwnerUse, ...] = ()


def in_units(count: int) -> str:
    """Bytes as people read them: `98.4 MB`."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
