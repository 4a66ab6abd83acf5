"""What other processes take of this machine's cores: beside them, nothing that is measured holds."""

from __future__ import annotations

import time

import psutil

__all__ = ["others_seconds"]


def others_seconds() -> float:
    """Seconds that the machine's cores worked for other processes since it began; it counts in hundredths."""
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0)) - time.process_time()
