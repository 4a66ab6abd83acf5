"""The real devices, which say that they have as much memory as a test gives them."""

from __future__ import annotations

import msgspec

from services.devices.messages import Device
from services.devices.service import Devices

__all__ = ["SmallDevices"]


class SmallDevices(Devices):
    """`memory` bytes in all, of which `free` can be had (None: all)."""

    memory = 0
    free: int | None = None

    def _describe(self, found: object) -> Device:
        free = self.memory if self.free is None else self.free
        return msgspec.structs.replace(
            super()._describe(found),  # type: ignore[arg-type] # of the superclass's own type
            memory_bytes=self.memory,
            memory_free_bytes=free,
        )
