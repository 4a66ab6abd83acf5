"""What may be said of a volume that keeps versions."""

from __future__ import annotations

from microkernel.message import Message

__all__ = ["VolumeSettings"]


class VolumeSettings(Message, kw_only=True):
    """`quotas` say what an owner may keep, in bytes, old versions included; `default_quota` what all others may.

    Versions are kept for `keep_seconds` after they have ended, those of snapshots for longer. `mirror` is a folder on
    another disk, to which a scrub copies all contents, and from which it repairs what is damaged. `limit_bytes` is for
    all owners together. `reserve_bytes` of the disk stay free of contents: files can be removed from a full one.
    """

    quotas: dict[str, int] = {}
    default_quota: int | None = None
    keep_seconds: float = 30 * 86400.0
    mirror: str | None = None
    limit_bytes: int | None = None
    reserve_bytes: int = 64 << 20
