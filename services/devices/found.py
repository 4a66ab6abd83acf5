"""A device that runs work of ours, as the service knows it: its present state, and what is to be measured of it."""

from __future__ import annotations

import asyncio

from microkernel.driver import DriverDevice
from services.devices.messages import DeviceState
from services.devices.others import Others

__all__ = ["Found"]


class Found:
    """A device with its driver's name and its present state."""

    def __init__(self, driver: str, device: DriverDevice) -> None:
        self.driver = driver
        self.device = device
        self.state = DeviceState.HEALTHY
        self.why = ""
        self.spread = device.facts.cores
        self.tuning = asyncio.Lock()  # of two measurements at a time, neither would be right
        self.needs_tuning = False
        self.pause = 0.0  # seconds that it is to be idle before it is tuned, where others were in the way before
        self.others = Others(device.facts.cores)
        self.idle_since: float | None = None
        self.quanta = 0  # that had ended then

    @property
    def usable(self) -> bool:
        """Whether something can be computed on it."""
        return self.state in {DeviceState.HEALTHY, DeviceState.SUSPECT}

    def look(self) -> bool:
        """Ask the device how it is; whether that has changed. A quarantined one stays so until the service restarts."""
        if self.state is DeviceState.QUARANTINED:
            return False
        before = self.state
        if lost := self.device.lost():
            self.state, self.why = DeviceState.QUARANTINED, lost
        elif fault := self.device.fault():
            self.state, self.why = DeviceState.SUSPECT, fault
        else:
            self.state, self.why = DeviceState.HEALTHY, ""
        return self.state is not before
