"""Intel's GPUs as the devices `xpu0`, `xpu1`, …, for a torch that is built for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from drivers.accelerator import Accelerator, Memory
from microkernel.driver import DeviceFacts, Driver, DriverDevice

__all__ = ["Xpu", "XpuDriver"]


class XpuDriver(Driver):
    """Finds all GPUs that torch's XPU sees."""

    name = "xpu"

    def find(self) -> Sequence[DriverDevice]:
        """One device a GPU; none without a GPU, its driver, or a torch that is built for it."""
        if not torch.xpu.is_available():
            return ()
        return tuple(Accelerator(_facts(index), Xpu(index)) for index in range(torch.xpu.device_count()))


class Xpu:
    """torch's calls for one GPU."""

    def __init__(self, index: int) -> None:
        self._index = index

    def begin(self) -> None:
        """Make the GPU and a stream of its own the thread's."""
        torch.xpu.set_device(self._index)
        torch.xpu.set_stream(torch.xpu.Stream(self._index))  # type: ignore[no-untyped-call] # torch's own

    def memory(self) -> Memory:
        """Ask the GPU; what torch's allocator keeps for our next tensors can be taken too."""
        ours = torch.xpu.memory_allocated(self._index)
        kept = torch.xpu.memory_reserved(self._index) - ours
        free, _ = torch.xpu.mem_get_info(self._index)
        return Memory(free + kept, ours)

    def ours(self) -> int:
        """Bytes of our tensors."""
        return torch.xpu.memory_allocated(self._index)


def _facts(index: int) -> DeviceFacts:
    properties = torch.xpu.get_device_properties(index)
    return DeviceFacts(
        name=f"xpu{index}",
        kind="xpu",
        model=properties.name,
        cores=properties.max_compute_units,
        threads=1,
        memory_bytes=properties.total_memory,
        dtypes=("float32", "float16", "bfloat16", "int8"),
        torch_device=f"xpu:{index}",
    )
