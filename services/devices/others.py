"""What other processes take of this machine's cores: beside them, nothing that is measured holds."""

from __future__ import annotations

import os
import time

import psutil

__all__ = ["Others", "others_seconds"]

QUIET = 0.15  # part of our cores that others may be in the way of


def others_seconds() -> float:
    """Seconds that the machine's cores worked for other processes since it began; it counts in hundredths."""
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0)) - time.process_time()


class Others:
    """What they took since it was made, or since `again`."""

    def __init__(self, cores: int) -> None:
        """`cores` are those that this process may use; the machine may have more, which are in nobody's way."""
        self._cores = cores
        self._spare = max(0, (os.cpu_count() or cores) - cores)
        self.again()

    def again(self) -> None:
        """Count from now on."""
        self._began, self._seconds = time.monotonic(), others_seconds()

    @property
    def cores(self) -> float:
        """How many of our cores they kept busy in the mean."""
        seconds = time.monotonic() - self._began
        return max(0.0, (others_seconds() - self._seconds) / seconds - self._spare) if seconds > 0.0 else 0.0

    @property
    def quiet(self) -> bool:
        """Whether they were not in the way."""
        return self.cores <= QUIET * self._cores
