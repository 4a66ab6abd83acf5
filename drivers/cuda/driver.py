"""GPUs that torch calls `cuda`, as the devices `cuda0`, `cuda1`, …: NVIDIA's, and AMD's where torch is built for ROCm.

Which of them are here follows `CUDA_VISIBLE_DEVICES`, as everywhere in torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from drivers.accelerator import Accelerator, Memory
from microkernel.driver import DeviceFacts, Driver, DriverDevice

__all__ = ["Cuda", "CudaDriver", "dtypes"]

TESLA_T4 = (7, 5)
AMPERE = (8, 0)
ADA = (8, 9)


class CudaDriver(Driver):
    """Finds all GPUs that torch's CUDA sees."""

    name = "cuda"

    def find(self) -> Sequence[DriverDevice]:
        """One device a GPU; none without a GPU, its driver, or a torch that is built for it."""
        if not torch.cuda.is_available():
            return ()
        return tuple(Accelerator(_facts(index), Cuda(index)) for index in range(torch.cuda.device_count()))


class Cuda:
    """torch's calls for one GPU."""

    def __init__(self, index: int) -> None:
        self._index = index

    def begin(self) -> None:
        """Make the GPU and a stream of its own the thread's: the default stream waits for all others."""
        torch.cuda.set_device(self._index)
        torch.cuda.set_stream(torch.cuda.Stream(self._index))  # type: ignore[no-untyped-call] # torch's own

    def memory(self) -> Memory:
        """Ask the GPU; what torch's allocator keeps for our next tensors can be taken too."""
        ours = torch.cuda.memory_allocated(self._index)
        kept = torch.cuda.memory_reserved(self._index) - ours
        free, _ = torch.cuda.mem_get_info(self._index)
        return Memory(free + kept, ours)

    def ours(self) -> int:
        """Bytes of our tensors."""
        return torch.cuda.memory_allocated(self._index)


def dtypes(capability: tuple[int, int]) -> tuple[str, ...]:
    """What tensor cores or the units before them multiply, by compute capability."""
    names = ["float32", "float16"]
    if capability >= AMPERE:
        names.append("bfloat16")
    if capability >= TESLA_T4:
        names.append("int8")
    if capability >= ADA:
        names.append("float8_e4m3fn")
    return tuple(names)


def _facts(index: int) -> DeviceFacts:
    properties = torch.cuda.get_device_properties(index)
    amd = torch.version.hip is not None
    capability = (properties.major, properties.minor)
    return DeviceFacts(
        name=f"cuda{index}",
        kind="cuda",
        model=properties.name,
        cores=properties.multi_processor_count,
        threads=1,
        memory_bytes=properties.total_memory,
        instruction_sets=(properties.gcnArchName.partition(":")[0] if amd else "sm_{}{}".format(*capability),),
        dtypes=("float32", "float16", "bfloat16", "int8") if amd else dtypes(capability),
        torch_device=f"cuda:{index}",
    )
