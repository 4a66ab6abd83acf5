"""The CPU of this machine as the device `cpu0`: what it can do, and its compute thread.

One compute thread runs one quantum at a time; inside a quantum torch spreads over all cores it was given. Beside it are
threads for work that takes one core, as many as there are cores.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil
import torch

from microkernel.cores import available_cores
from microkernel.driver import DeviceFacts, Driver, DriverDevice, Trial
from microkernel.executor import Executor

__all__ = ["CpuDevice", "CpuDriver"]

# What kernels are chosen by, in the names of /proc/cpuinfo (x86) and of its Features line (Arm).
_INSTRUCTION_SETS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "neon", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


SPREAD = 1 << 17  # elements from which on torch is sure to spread an operation; it does not below 32,768

# Two kinds of work: one row by a matrix that no cache holds is as fast as memory is read, many rows by a small matrix
# as fast as cores multiply. The first is what a model does for the next token, the second for a prompt, or in training.
STREAMED = 4096  # rows and columns of float32: 64 MiB
MULTIPLIED = 768
ROWS = 256


class CpuDriver(Driver):
    """Finds the one CPU device there always is."""

    name = "cpu"

    def find(self) -> Sequence[DriverDevice]:
        """The device `cpu0`."""
        return (CpuDevice(),)


class CpuDevice(DriverDevice):
    """All cores that this process may use, as one device."""

    def __init__(self) -> None:
        cores = available_cores()
        self.facts = DeviceFacts(
            name="cpu0",
            kind="cpu",
            model=_model_name(),
            cores=cores,
            threads=1,
            memory_bytes=memory_limit(),
            instruction_sets=instruction_sets(),
            dtypes=_dtypes(),
            torch_device="cpu",
        )

    def executor(self) -> Executor:
        """One compute thread, whose torch operations use every core, and for each core one whose operations use one."""
        cores = self.facts.cores

        return Executor(
            self.facts.name,
            threads=1,
            cores=cores,
            initialize=partial(_use_cores, cores),
            initialize_core=partial(_use_cores, 1),
        )

    def free_memory(self) -> int:
        """Bytes that can be taken without swapping, inside of this process's limit."""
        return max(0, min(psutil.virtual_memory().available, self.facts.memory_bytes - _cgroup_usage()))

    def fault(self) -> str | None:
        """A CPU that runs this line is healthy."""
        return None

    def trials(self) -> Mapping[str, Trial]:
        """One that reads memory, and one that multiplies; a few milliseconds each."""
        large, small = torch.ones(STREAMED, STREAMED), torch.ones(MULTIPLIED, MULTIPLIED)
        row, rows = torch.ones(1, STREAMED), torch.ones(ROWS, MULTIPLIED)
        return {
            "read": partial(_timed, lambda: row @ large.t()),
            "multiply": partial(_timed, lambda: rows @ small),
        }

    def spread(self, threads: int) -> None:
        """As torch spreads them."""
        _use_cores(threads)


def _use_cores(count: int) -> None:
    """Have torch's operations on the calling thread use so many: OpenMP keeps its count for each thread.

    Before its first operation that is spread, a thread takes what was set last on any thread: so it does one at once.
    """
    torch.set_num_threads(count)
    torch.zeros(SPREAD).add_(1)


def _timed(work: Callable[[], torch.Tensor], threads: int) -> float:
    """Seconds that `work` takes on so many threads, once they are awake."""
    if torch.get_num_threads() != threads:
        _use_cores(threads)
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def memory_limit() -> int:
    """Bytes that this process may have: the machine's, or a container's limit if that is less."""
    total = psutil.virtual_memory().total
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return total if limit == "max" else min(total, int(limit))


def instruction_sets() -> tuple[str, ...]:
    """The vector instruction sets of this CPU that matter to kernels, oldest first."""
    flags: set[str] = set()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in {"flags", "Features"}:
                flags.update(value.split())
                break
    except OSError:  # not Linux: torch knows the best set that it uses
        return (torch.backends.cpu.get_cpu_capability().lower(),)
    return tuple(name for name in _INSTRUCTION_SETS if name in flags)


def _cgroup_usage() -> int:
    try:
        return int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def _model_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.machine()


def _dtypes() -> tuple[str, ...]:
    """What can be multiplied here, by trying it: a dtype that torch only stores is of no use."""
    usable = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int8):
        try:
            ones = torch.ones(2, 2, dtype=dtype)
            ones @ ones
        except RuntimeError:
            continue
        usable.append(str(dtype).removeprefix("torch."))
    return tuple(usable)
