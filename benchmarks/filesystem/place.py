"""Where the benchmark works: a folder on a disk, since memory has nothing to sync."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["Place"]


class Place:
    """A folder that is there between `start` and `stop`: below `MICROKERNEL_BENCH_DIR`, or `/var/tmp`."""

    async def start(self) -> None:
        """Make it."""
        above = os.environ.get("MICROKERNEL_BENCH_DIR", "/var/tmp")
        self.folder = Path(tempfile.mkdtemp(prefix="microkernel-bench-", dir=above))

    async def stop(self) -> None:
        """Remove it."""
        shutil.rmtree(self.folder)
