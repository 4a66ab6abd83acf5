"""Who keeps a state: ours, `torch.distributed.checkpoint.async_save` and `torch.save`, each in a process of its own.

A state is what AdamW has: weights and two moments, flat float32. The loop that a checkpoint should leave alone
multiplies matrices on all cores, as training does.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.filesystem.place import Place
from services.training.checkpoints.facts import Facts
from services.training.checkpoints.saver import CheckpointSaver, Taken
from services.training.checkpoints.state import TrainingState

__all__ = ["AsyncSave", "AsyncSaveStaged", "Ours", "TorchSave"]

NAMES = ("weights", "adamw.exp_avg", "adamw.exp_avg_sq")
EVERY = 50  # steps from one checkpoint to the next
SIDE = 1024  # of the matrices that the loop multiplies
PRODUCTS = 8  # of them a step
WAIT = 600.0  # seconds


class Saver(Place):
    """A contender: `begin` starts a checkpoint, `finish` waits until it is durable."""

    def prepare(self, state: dict[str, torch.Tensor]) -> None:
        """What is done once, before training."""

    def begin(self, state: dict[str, torch.Tensor], number: int) -> None:
        """What training waits for."""
        raise NotImplementedError

    def finish(self) -> None:
        """Until it is on the disk."""

    def end(self) -> None:
        """What is done once, after training."""

    def aside(self) -> float | None:
        """Processor seconds of a process that does nothing but write, so far; None where there is none."""
        return None

    async def save(self, megabytes: int, times: int) -> dict[str, float]:
        """Seconds that training waits and until it is durable, of a state of so many MB: medians, without the first."""
        state = state_of(megabytes)
        self.prepare(state)
        blocked, durable = [], []
        for number in range(times + 1):
            began = time.perf_counter()
            self.begin(state, number)
            blocked.append(time.perf_counter() - began)
            self.finish()
            durable.append(time.perf_counter() - began)
        self.end()
        return {
            f"blocked/{megabytes}": statistics.median(blocked[1:]) / megabytes,
            f"durable/{megabytes}": statistics.median(durable[1:]),
        }

    async def sizes(self, megabytes: list[int], times: int) -> dict[str, float]:
        """`save` for several sizes."""
        found: dict[str, float] = {}
        for each in megabytes:
            found.update(await self.save(each, times))
        return found

    async def loop(self, megabytes: int, blocks: int, steps: int = EVERY) -> dict[str, float]:
        """The part that is lost of a busy loop's steps with a checkpoint in each 50, against as many without one.

        Blocks with one stand between blocks without. `lost` is by the clock, against the mean of both neighbours;
        `noise` is what these differ by, with no checkpoint in either: a loss that is not well above it says nothing.
        `cost` needs no quiet machine: that training waits for the copy, and the writer's own processor time as spread
        over all cores, as a part of the neighbours' time. Processor time of the loop itself is of no use: its threads
        spin while others have their partners' cores.
        """
        state = state_of(megabytes)
        left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
        self.prepare(state)
        self.begin(state, 0)
        self.finish()
        plain = [_steps(left, right, steps)]
        lost, noise, cost = [], [], []
        for number in range(1, blocks + 1):
            aside, began = self.aside(), time.perf_counter()
            self.begin(state, number)
            blocked = time.perf_counter() - began
            took = blocked + _steps(left, right, steps)
            self.finish()
            spent = self.aside()
            plain.append(_steps(left, right, steps))
            without = statistics.mean(plain[-2:])
            lost.append(1 - without / took)
            noise.append(abs(plain[-1] - plain[-2]) / without)
            if aside is not None and spent is not None:
                cost.append((blocked + (spent - aside) / (psutil.cpu_count() or 1)) / without)
        self.end()
        found = {"lost": statistics.median(lost), "noise": statistics.median(noise)}
        return {**found, "cost": statistics.median(cost)} if cost else found


class Ours(Saver):
    """`CheckpointSaver`."""

    saver: CheckpointSaver

    def prepare(self, state: dict[str, torch.Tensor]) -> None:
        """Memory, its pages, and the writer."""
        self.saver = CheckpointSaver(
            TrainingState(state, Facts(step=0)), folder=self.folder / "ours", job="bench", key=self.folder / "key"
        )

    def begin(self, state: dict[str, torch.Tensor], number: int) -> None:
        """A copy."""
        taken = self.saver.save(TrainingState(state, Facts(step=number)))
        assert isinstance(taken, Taken)

    def finish(self) -> None:
        """Until the writer tells."""
        self.saver.wait(WAIT)

    def aside(self) -> float | None:
        """The writer's."""
        times = psutil.Process(self.saver.pid).cpu_times()
        return times.user + times.system

    def end(self) -> None:
        """The writer's end."""
        self.saver.close()
        shutil.rmtree(self.folder / "ours")


class AsyncSave(Saver):
    """`torch.distributed.checkpoint.async_save` as it is by default: a copy, and a thread that writes."""

    future: Future[Any] | None = None
    stager: Any = None

    def begin(self, state: dict[str, torch.Tensor], number: int) -> None:
        """A copy, into memory that is made for it unless there is a stager."""
        from torch.distributed import checkpoint

        target = self.folder / f"async-{number % 2}"
        shutil.rmtree(target, ignore_errors=True)
        answer = checkpoint.async_save(state, checkpoint_id=target, async_stager=self.stager, no_dist=True)
        assert isinstance(answer, Future)
        self.future = answer

    def finish(self) -> None:
        """Its files are synced by then."""
        if self.future is not None:
            self.future.result()
            self.future = None


class AsyncSaveStaged(AsyncSave):
    """The same with a stager that is kept, and its memory with it."""

    def prepare(self, state: dict[str, torch.Tensor]) -> None:  # noqa: ARG002 - the stager sees it when it is to copy
        """The stager; without CUDA it has no pinned memory and no streams."""
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        self.stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
            )
        )

    def end(self) -> None:
        """The stager's end."""
        self.stager.close()


class TorchSave(Saver):
    """`torch.save` beside, synced, renamed: training waits for all of it."""

    def begin(self, state: dict[str, torch.Tensor], number: int) -> None:
        """All of it."""
        target = self.folder / f"whole-{number % 2}.pt"
        beside = target.with_suffix(".partial")
        with beside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
        _sync(self.folder)


def state_of(megabytes: int) -> dict[str, torch.Tensor]:
    """Weights and moments of so many MB in all."""
    elements = megabytes * 10**6 // 4 // len(NAMES)
    return {name: torch.randn(elements) for name in NAMES}


def _steps(left: torch.Tensor, right: torch.Tensor, steps: int) -> float:
    """Seconds that so many steps of the loop take."""
    began = time.perf_counter()
    for _ in range(steps * PRODUCTS):
        torch.mm(left, right)
    return time.perf_counter() - began


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
