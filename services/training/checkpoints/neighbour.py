"""The last checkpoint from a neighbour's memory: a job whose workers have all died goes on without its disk.

Whoever holds the descriptor of a job's segment, be it another worker or the service that started them, holds its
checkpoints: the writer says beside a slot what is in it, with the manifest that it has signed. So a copy in memory is
believed for the same reasons as one on the disk, each piece by its digest.
"""

from __future__ import annotations

import os
import socket

import torch

from microkernel.errors import DataLoss, MicrokernelError, NotFound, Unavailable
from services.training.checkpoints.image import PAGE, aligned
from services.training.checkpoints.keys import TrustedKeys
from services.training.checkpoints.manifest import Manifest, StoredFile, opened
from services.training.checkpoints.reading import read_tensors
from services.training.checkpoints.shared import SLOTS, Content, Segment
from services.training.checkpoints.state import TrainingState

__all__ = ["receive_segment", "restore_held", "send_segment"]

SAID = b"segment"


def send_segment(link: socket.socket, segment: Segment) -> None:
    """Let whoever is at the other end of a Unix socket hold the memory too."""
    socket.send_fds(link, [SAID], [segment.handle])


def receive_segment(link: socket.socket) -> Segment:
    """What `send_segment` sends. Raises `Unavailable` at the link's end, `DataLoss` for something else."""
    said, handles, _, _ = socket.recv_fds(link, len(SAID), 1)
    if not said:
        raise Unavailable("the link ended before a segment came")
    if said != SAID or len(handles) != 1:
        for handle in handles:
            os.close(handle)
        raise DataLoss("what came is no segment of checkpoints")
    return Segment(handles[0])


def restore_held(segment: Segment, job: str, trusted: TrustedKeys) -> tuple[Manifest, TrainingState]:
    """The newest checkpoint of `job` that is whole in the memory, and what it says.

    For when its trainer and writer are dead: a slot that is being filled is no checkpoint. Raises `NotFound` where
    there is none, with what is wrong with those that are not.
    """
    found: list[tuple[Manifest, int]] = []
    why = []
    for slot in range(SLOTS):
        content, told = segment.told(slot)
        if content != Content.MANIFEST:
            continue
        try:
            manifest = opened(told, f"the manifest of slot {slot}", trusted)
        except MicrokernelError as error:
            why.append(error.message)
            continue
        if manifest.job == job:
            found.append((manifest, slot))
    for manifest, slot in sorted(found, key=lambda each: -each[0].number):
        try:
            return manifest, _read(segment, slot, manifest)
        except DataLoss as error:
            why.append(error.message)
    raise NotFound(f"no checkpoint of '{job}' is in the memory" + (f": {'; '.join(why)}" if why else ""))


def _read(segment: Segment, slot: int, manifest: Manifest) -> TrainingState:
    tensors = {}
    place = 0
    with segment.bytes_of(slot) as memory:
        for file in manifest.files:
            tensors.update(_read_file(memory[place : place + file.size], file))
            place = aligned(place + file.size, PAGE)
    return TrainingState(tensors, manifest.facts)


def _read_file(held: memoryview, file: StoredFile) -> dict[str, torch.Tensor]:
    def source(memory: memoryview, place: int) -> int:
        came = held[place : place + len(memory)]
        memory[: len(came)] = came
        return len(came)

    with held:
        return read_tensors(file, source)
