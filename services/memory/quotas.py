"""What each owner may have: by setting, and changed live. A plain class without a loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from microkernel.errors import Invalid
from services.memory.messages import EVERYBODY, Quota

__all__ = ["OwnerQuotas", "check_quota"]


class OwnerQuotas:
    """Quotas of owners, and one for all others. What is set live goes over the settings until it is taken back."""

    def __init__(self, settings: Mapping[str, int | float], default: int | float | None) -> None:
        """Raises `Invalid` that names the owner whose quota is none."""
        self._settings = dict(settings)
        if default is not None:
            self._settings[EVERYBODY] = default
        self._live: dict[str, int | float] = {}
        for owner, quota in self._settings.items():
            check_quota(owner, quota)

    @property
    def live(self) -> dict[str, int | float]:
        """What was set live, by owner."""
        return dict(self._live)

    def set(self, owner: str, quota: int | float | None) -> None:
        """Change one live; None takes it back. Raises `Invalid`."""
        if not owner:
            raise Invalid(
                "a quota is somebody's", field="owner", remedy=f"'{EVERYBODY}' is everybody without their own"
            )
        if quota is None:
            self._live.pop(owner, None)
            return
        check_quota(owner, quota)
        self._live[owner] = quota

    def bytes(self, owner: str, limit: int) -> int | None:
        """What `owner` may have of an account of `limit` bytes; None: as much as there is."""
        for quotas in (self._live, self._settings):
            if owner in quotas:
                return _in_bytes(quotas[owner], limit)
        return None if owner == EVERYBODY else self.bytes(EVERYBODY, limit)

    def all(self, limits: Iterable[tuple[str, int]]) -> tuple[Quota, ...]:
        """All that are set, for each device with its limit; everybody's comes last."""
        owners = sorted(self._settings.keys() | self._live.keys(), key=lambda owner: (owner == EVERYBODY, owner))
        return tuple(
            Quota(
                owner=owner,
                device=device,
                bytes=self.bytes(owner, limit),
                set="live" if owner in self._live else "settings",
            )
            for device, limit in limits
            for owner in owners
        )


def check_quota(owner: str, quota: int | float) -> None:
    """Raise `Invalid` for what is neither bytes nor a share."""
    if isinstance(quota, float) and not 0.0 < quota <= 1.0:
        raise Invalid(
            f"{quota} is no share for '{owner}'",
            field="quota",
            remedy="a share is above 0 and at most 1.0; bytes are whole",
        )
    if quota < 0:
        raise Invalid(f"a quota of {quota} bytes for '{owner}'", field="quota", remedy="0 allows none")


def _in_bytes(quota: int | float, limit: int) -> int:
    return int(quota * limit) if isinstance(quota, float) else quota
