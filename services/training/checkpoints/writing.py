"""Makes one checkpoint after another in a folder out of slots: files, then the manifest, then room for the next."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from microkernel.durable import sync_folder
from microkernel.errors import Aborted, DataLoss
from services.training.checkpoints.channel import Open
from services.training.checkpoints.disk import require_room, write_durably, writing
from services.training.checkpoints.facts import Facts
from services.training.checkpoints.file_writing import write_image
from services.training.checkpoints.image import plan
from services.training.checkpoints.keys import SigningKey, TrustedKeys
from services.training.checkpoints.manifest import FORMAT, Manifest, Parent, digest_of, file_name, manifest_name, sealed
from services.training.checkpoints.rotation import superfluous
from services.training.checkpoints.scan import clean, last_number, remove, scan

__all__ = ["FolderWriter"]

LOCK = ".lock"
LOCK_WAIT = 150.0  # seconds: the writer of a trainer that died may still finish what it has
LOCK_POLL = 0.05


class FolderWriter:
    """The only one that writes in its folder: it holds a lock on it, which the system takes from it when it dies.

    Raises `Aborted` where another one holds it for longer than it may, and as files and keys do.
    """

    def __init__(self, order: Open, wait: float = LOCK_WAIT) -> None:
        self._order = order
        self._folder = Path(order.folder)
        self._plan = plan(order.sizes, order.file_bytes)
        with writing(self._folder, 0):
            if not self._folder.is_dir():
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                sync_folder(self._folder.parent)
            self._lock = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._wait_for_lock(wait)
            with writing(self._folder, 0):
                notes = clean(self._folder)
            self._key = SigningKey.at(Path(order.key))
            self._trusted = TrustedKeys([self._key.public, *order.trusted])
            found = scan(self._folder, self._trusted, order.job)
            self.notes = (*notes, *found.notes)
            self._parent = None if order.parent is None else Parent(*order.parent)
            self._number = last_number(self._folder)
        except BaseException:
            os.close(self._lock)
            raise

    def write(self, memory: memoryview, facts_bytes: bytes, safe: Callable[[bytes], None]) -> tuple[Manifest, str]:
        """Write what lies in a slot, with the encoded facts about it; the manifest, and the digest of its file.

        `safe` gets the manifest's bytes as soon as the checkpoint is durable; then old ones are removed. What that
        meets is a note. Raises `PreconditionFailed` where the disk is full, and `DataLoss` where it or the slot is
        damaged; nothing is left of the attempt then, and the checkpoints before it are as they were.
        """
        number = self._number + 1
        try:
            facts = msgspec.json.decode(facts_bytes, type=Facts)
        except msgspec.MsgspecError as error:
            raise DataLoss(f"the facts of a checkpoint in the shared memory are damaged: {error}") from error
        paths = [self._folder / file_name(number, index) for index in range(len(self._plan.images))]
        try:
            require_room(self._folder, sum(image.size for image in self._plan.images))
            files = tuple(
                write_image(memory, image, path) for image, path in zip(self._plan.images, paths, strict=True)
            )
            with writing(self._folder, 0):
                sync_folder(self._folder)
            manifest = Manifest(
                format=FORMAT,
                job=self._order.job,
                number=number,
                made=time.time(),
                parent=self._parent,
                facts=facts,
                files=files,
            )
            content = sealed(manifest, self._key)
            write_durably(self._folder / manifest_name(number), content)
        except BaseException:
            self._withdraw(number, paths)
            raise
        digest = digest_of(content)
        self._number, self._parent = number, Parent(number, digest)
        safe(content)
        self._rotate()
        return manifest, digest

    def close(self) -> None:
        """Let others write in the folder."""
        os.close(self._lock)

    def _withdraw(self, number: int, paths: list[Path]) -> None:
        """Give the space of an attempt back; a manifest that may not be durable goes first."""
        for path in [self._folder / manifest_name(number), *paths]:
            path.unlink(missing_ok=True)

    def _rotate(self) -> None:
        """Remove what need not be kept. The new one is safe: a folder that cannot be tidied is told, and no failure."""
        found = scan(self._folder, self._trusted, self._order.job)
        self.notes = found.notes
        try:
            remove(self._folder, superfluous(found.complete, self._order.keep))
        except OSError as error:
            self.notes = (*self.notes, f"old checkpoints in {self._folder} cannot be removed: {error}")

    def _wait_for_lock(self, wait: float) -> None:
        end = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise Aborted(
                        f"another process writes checkpoints in {self._folder}", remedy="give each job its own folder"
                    ) from error
                time.sleep(LOCK_POLL)
            else:
                return
