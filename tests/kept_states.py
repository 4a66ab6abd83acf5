"""States of training jobs, small ones, and checkpoints of them, written in the test's own process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch

from services.training.checkpoints.channel import Open
from services.training.checkpoints.copying import Copier
from services.training.checkpoints.facts import EVALUATION_LOSS, Facts
from services.training.checkpoints.folder import CheckpointFolder
from services.training.checkpoints.image import FILE_BYTES, plan
from services.training.checkpoints.keys import SigningKey, TrustedKeys
from services.training.checkpoints.shared import Segment
from services.training.checkpoints.state import TrainingState
from services.training.checkpoints.writing import FolderWriter

__all__ = ["JOB", "SIZES", "KeptJob", "flip", "holding", "same", "slot_of", "state_of"]

JOB = "job"
SIZES = {"weights": 3000, "adamw.exp_avg": 3000, "adamw.exp_avg_sq": 3000}


def state_of(step: int, *, sizes: dict[str, int] = SIZES, loss: float | None = None, **facts) -> TrainingState:
    """A state whose numbers are of its step and nobody else's."""
    metrics = {} if loss is None else {EVALUATION_LOSS: loss}
    random = torch.Generator().manual_seed(step)
    tensors = {name: torch.randn(elements, generator=random) for name, elements in sizes.items()}
    return TrainingState(tensors, Facts(step=step, metrics=metrics, **facts))


def same(one: TrainingState, other: TrainingState) -> bool:
    """Whether two are equal, bit for bit."""
    return (
        one.facts == other.facts
        and one.sizes == other.sizes
        and all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    )


def slot_of(state: TrainingState, file_bytes: int = FILE_BYTES) -> memoryview:
    """What a trainer copies."""
    layout = plan(state.sizes, file_bytes)
    memory = memoryview(bytearray(layout.size))
    Copier(layout).copy(state, memory)
    return memory


def flip(path: Path, bit: int) -> None:
    """Change one bit of a file, whose number is taken within it."""
    content = bytearray(path.read_bytes())
    bit %= 8 * len(content)
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)


HOLDER = (
    "import sys; sys.path[:] = sys.argv[3:]; from services.training.checkpoints.shared import Segment; "
    "segment = Segment(int(sys.argv[1])); print(segment.take(int(sys.argv[2])), flush=True); sys.stdin.read()"
)


@contextmanager
def holding(segment: Segment, slot: int) -> Iterator[subprocess.Popen]:
    """Another process, which has taken a slot."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(segment.handle), str(slot), *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[segment.handle],
    )
    try:
        assert process.stdout.readline() == b"True\n"
        yield process
    finally:
        process.kill()
        process.communicate()


class KeptJob:
    """A folder below `root`, with its key, and a writer for it."""

    def __init__(self, root: Path, *, keep: int = 2, file_bytes: int = FILE_BYTES, sizes: dict[str, int] = SIZES):
        self.path = root / "checkpoints"
        self.key_path = root / "key"
        self.key = SigningKey.at(self.key_path)
        self.trusted = TrustedKeys([self.key.public])
        self.folder = CheckpointFolder(self.path, JOB, self.trusted)
        self.file_bytes = file_bytes
        self.order = Open(str(self.path), JOB, str(self.key_path), keep, sizes, file_bytes)
        self._writer: FolderWriter | None = None

    @property
    def writer(self) -> FolderWriter:
        """Started when it is needed."""
        if self._writer is None:
            self._writer = FolderWriter(self.order, wait=1.0)
        return self._writer

    def write(self, *states: TrainingState) -> int:
        """The number of the last of them."""
        number = 0
        for state in states:
            told = msgspec.json.encode(state.facts)
            number = self.writer.write(slot_of(state, self.file_bytes), told, lambda _: None)[0].number
        return number

    def close(self) -> None:
        """Let another writer in."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def names(self) -> list[str]:
        """What is in the folder, but the lock."""
        return sorted(path.name for path in self.path.iterdir() if path.name != ".lock")
