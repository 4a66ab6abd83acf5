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

    def seconds(self) -> float:
        """Processor time that all of this has taken, of this process and its children that live."""
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        return sum(times.user + times.system for times in (each.cpu_times() for each in processes))

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

    async def loop(self, megabytes: int, pairs: int, steps: int = EVERY) -> dict[str, float]:
        """The part that is lost of a busy loop's steps with a checkpoint in each 50, against as many without one.

        `lost` is by the clock, pair by pair; `taken` is the processor time more than without, as a part of all cores'.
        The latter does not depend on what others do on the machine, and leaves out that training waits for its slowest
        thread.
        """
        state = state_of(megabytes)
        left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
        self.prepare(state)
        self.begin(state, 0)
        self.finish()
        lost, taken = [], []
        for pair in range(pairs):
            plain, with_one = (self._steps(left, right, steps, state, pair + 1, order) for order in _orders(pair))
            if pair % 2:
                plain, with_one = with_one, plain
            lost.append(1 - plain[0] / with_one[0])
            taken.append((with_one[1] - plain[1]) / (psutil.cpu_count() or 1) / with_one[0])
        self.end()
        return {"lost": statistics.median(lost), "taken": statistics.median(taken)}

    def _steps(
        self,
        left: torch.Tensor,
        right: torch.Tensor,
        steps: int,
        state: dict[str, torch.Tensor],
        number: int,
        keeps: bool,
    ) -> tuple[float, float]:
        """Wall and processor seconds of some steps; the checkpoint begins with them and ends where it does."""
        busy, began = self.seconds(), time.perf_counter()
        if keeps:
            self.begin(state, number)
        for _ in range(steps):
            for _ in range(PRODUCTS):
                torch.mm(left, right)
        took = time.perf_counter() - began
        self.finish()
        return took, self.seconds() - busy


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


def _orders(pair: int) -> tuple[bool, bool]:
    """Whether there is a checkpoint, in the first half of a pair and in the second: what is first turns."""
    return (True, False) if pair % 2 else (False, True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
