"""Copies a state into a slot with as many threads as pay (hot: training waits for it).

A core alone does not fill a memory bus; beyond a few, threads only take turns. How many pay is measured at the start.
numpy copies past the caches: at 500 MB it takes 0.15 ms a MB where torch's `copy_` takes 0.24.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from services.training.checkpoints.image import SlotPlan
from services.training.checkpoints.state import TrainingState

__all__ = ["Copier", "threads_that_pay"]

PIECE = 2 << 20  # elements that a thread takes at a time: 8 MiB
MOST_THREADS = 8
GAIN = 0.9  # of the time without them: more threads that gain less than this are left to others
TIMES = 3

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


class Copier:
    """Copies states of one plan. Close it: its threads wait between copies."""

    def __init__(self, plan: SlotPlan, threads: int = 1) -> None:
        self._plan = plan
        self.threads = max(1, threads)
        self._pool = ThreadPoolExecutor(self.threads, "checkpoint-copy") if self.threads > 1 else None

    def copy(self, state: TrainingState, memory: memoryview) -> None:
        """Make `memory`, a slot, the files of `state`; tensors on a device are waited for."""
        pairs: list[Pair] = []
        for image in self._plan.images:
            memory[image.place : image.place + len(image.header)] = image.header
            for name, start in image.starts.items():
                tensor, place = state.tensors[name].detach(), image.place + start
                if tensor.device.type == "cpu":
                    target = np.frombuffer(memory, np.float32, image.sizes[name], place)
                    pairs += _pieces(target, tensor.numpy())
                else:
                    kept = torch.frombuffer(memory, dtype=torch.float32, count=image.sizes[name], offset=place)
                    kept.copy_(tensor)
        if self._pool is None:
            _copy(pairs)
        else:
            list(self._pool.map(_copy, [pairs[each :: self.threads] for each in range(self.threads)]))

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def threads_that_pay(plan: SlotPlan, state: TrainingState, memory: memoryview) -> int:
    """How many threads copy `state` fastest here and now, by trying; `memory` is a slot, and holds it afterwards."""
    best, fastest = 1, _seconds(Copier(plan, 1), state, memory)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = 2
    while count <= min(cores, MOST_THREADS):
        seconds = _seconds(Copier(plan, count), state, memory)
        if seconds < fastest * GAIN:
            best, fastest = count, seconds
        count *= 2
    return best


def _seconds(copier: Copier, state: TrainingState, memory: memoryview) -> float:
    """The least of a few tries: what others do only makes it longer."""
    taken = []
    for _ in range(TIMES):
        began = time.perf_counter()
        copier.copy(state, memory)
        taken.append(time.perf_counter() - began)
    copier.close()
    return min(taken)


def _pieces(target: NDArray[np.float32], source: NDArray[np.float32]) -> list[Pair]:
    return [(target[place : place + PIECE], source[place : place + PIECE]) for place in range(0, len(source), PIECE)]


def _copy(pairs: list[Pair]) -> None:
    for target, source in pairs:
        np.copyto(target, source)
