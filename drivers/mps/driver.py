"""The GPU of a Mac as the device `mps0`. Its memory is the machine's: what the system recommends for it counts."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import psutil
import torch

from drivers.accelerator import Accelerator, Memory
from microkernel.driver import DeviceFacts, Driver, DriverDevice

__all__ = ["Mps", "MpsDriver"]


class MpsDriver(Driver):
    """Finds the one GPU that a Mac has."""

    name = "mps"

    def find(self) -> Sequence[DriverDevice]:
        """The device `mps0`; none on other systems, or where torch is not built for it."""
        if not torch.backends.mps.is_available():
            return ()
        facts = DeviceFacts(
            name="mps0",
            kind="mps",
            model=f"Apple GPU, {platform.processor() or platform.machine()}",
            cores=1,  # Metal does not tell
            threads=1,
            memory_bytes=torch.mps.recommended_max_memory(),
            dtypes=("float32", "float16", "bfloat16"),
            torch_device="mps",
        )
        return (Accelerator(facts, Mps()),)


class Mps:
    """torch's calls for it."""

    def begin(self) -> None:
        """Nothing: torch has one device and one stream."""

    def memory(self) -> Memory:
        """What the system recommends less what the driver has given out, but no more than the machine has."""
        ours = torch.mps.current_allocated_memory()
        kept = max(0, torch.mps.driver_allocated_memory() - ours)
        left = torch.mps.recommended_max_memory() - ours
        return Memory(max(0, min(left, psutil.virtual_memory().available + kept)), ours)

    def ours(self) -> int:
        """Bytes of our tensors."""
        return torch.mps.current_allocated_memory()
