"""What the numbers were measured on."""

from __future__ import annotations

import platform

import msgspec
import psutil

from drivers.cpu.driver import CpuDevice

__all__ = ["Machine", "this_machine"]


class Machine(msgspec.Struct, frozen=True):
    """`busy` is the share of all cores that others took in the second before the start."""

    cpu: str
    cores: int
    memory: int
    instruction_sets: tuple[str, ...]
    system: str
    python: str
    busy: float

    def lines(self) -> list[str]:
        """For people."""
        sets = " ".join(
            each for each in self.instruction_sets if each.startswith(("avx", "amx", "neon", "asimd", "i8"))
        )
        noisy = "; not quiet, expect spread" if self.busy > 0.1 else ""
        return [
            f"{self.cpu}, {self.cores} cores ({sets}), {self.memory / 2**30:.1f} GiB of memory",
            f"{self.system}, Python {self.python}; busy with others before the start: {self.busy:.0%}{noisy}",
        ]


def this_machine() -> Machine:
    """As the CPU driver sees it: cores are those that this process may use."""
    facts = CpuDevice().facts
    return Machine(
        cpu=facts.model,
        cores=facts.cores,
        memory=facts.memory_bytes,
        instruction_sets=facts.instruction_sets,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        busy=psutil.cpu_percent(interval=1.0) / 100,
    )
