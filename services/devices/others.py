"""What other processes take of this machine's cores: beside them, nothing that is measured holds."""

from __future__ import annotations

import os
import time

import psutil

from services.devices.messages import QUIET, in_the_way

__all__ = ["Others", "machine_cores", "others_seconds"]


def machine_cores() -> int:
    """How many there are, for us and for others."""
    return os.cpu_count() or 1


def others_seconds() -> float:
    """Seconds that the machine's cores worked for other processes since it began; it counts in hundredths."""
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0)) - time.process_time()


class Others:
    """What they took since it was made, or since `again`."""

    def __init__(self, cores: int) -> None:
        """`cores` are those that this process may use."""
        self._cores = cores
        self.again()

    def again(self) -> None:
        """Count from now on."""
        self._began, self._seconds = time.monotonic(), others_seconds()

    @property
    def cores(self) -> float:
        """How many of our cores they kept busy in the mean."""
        seconds = time.monotonic() - self._began
        return in_the_way(others_seconds() - self._seconds, seconds, self._cores, machine_cores())

    @property
    def quiet(self) -> bool:
        """Whether they were not in the way."""
        return self.cores <= QUIET * self._cores
