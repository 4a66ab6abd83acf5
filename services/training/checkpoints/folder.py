"""The folder of a job's checkpoints as it is read: the newest that is whole, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path

from microkernel.errors import DataLoss, NotFound
from services.training.checkpoints.keys import TrustedKeys
from services.training.checkpoints.reading import read_file
from services.training.checkpoints.scan import Checkpoint, Found, scan
from services.training.checkpoints.state import TrainingState

__all__ = ["CheckpointFolder", "read"]


def read(checkpoint: Checkpoint) -> TrainingState:
    """What it holds, on the CPU, each byte compared. Raises `DataLoss` that names the file and what is wrong."""
    tensors = {}
    for file in checkpoint.manifest.files:
        tensors.update(read_file(checkpoint.folder, file))
    return TrainingState(tensors, checkpoint.manifest.facts)


class CheckpointFolder:
    """The checkpoints of `job` in `path` that a trusted key has signed. It changes nothing there."""

    def __init__(self, path: Path, job: str, trusted: TrustedKeys) -> None:
        self.path = path
        self._job = job
        self._trusted = trusted

    def scan(self) -> Found:
        """Complete ones, the newest first, and what is wrong with others. Tensors are not read."""
        return scan(self.path, self._trusted, self._job)

    def verify(self) -> Found:
        """As `scan`, with every byte read: complete are those of which each is as it was written."""
        found = self.scan()
        good, notes = [], list(found.notes)
        for checkpoint in found.complete:
            try:
                read(checkpoint)
            except DataLoss as error:
                notes.append(error.message)
            else:
                good.append(checkpoint)
        return Found(tuple(good), tuple(notes))

    def newest(self) -> tuple[Checkpoint, TrainingState, tuple[str, ...]]:
        """The newest checkpoint that is whole, what it holds, and what was wrong with those that were passed over.

        Raises `NotFound` where there never was one, `DataLoss` where none is whole.
        """
        notes: list[str] = []
        while True:
            found = self.scan()
            for checkpoint in found.complete:
                try:
                    return checkpoint, read(checkpoint), (*found.notes, *notes)
                except DataLoss as error:
                    notes.append(error.message)
            if not self._has_changed(found):
                break
        if not found.complete and not found.notes:
            raise NotFound(f"there is no checkpoint of '{self._job}' in {self.path}")
        raise DataLoss(
            f"no checkpoint in {self.path} is whole: {'; '.join((*found.notes, *notes))}",
            remedy="restore the folder from a backup, or begin the job again",
        )

    def _has_changed(self, found: Found) -> bool:
        """A writer may have removed old ones while these were read: then there is a newer one now."""
        return {each.number for each in self.scan().complete} != {each.number for each in found.complete}
