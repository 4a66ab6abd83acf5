"""The shared memory that checkpoints are copied into: two slots, and for each a room for what is said of it.

The segment is a memfd: it has no name, so nothing is left of it when the processes that hold it are killed, and it is
handed on as a file descriptor. Its pages are made when it is created: onto pages that are not there yet, a copy takes
1.4 ms a MB and not 0.11 to 0.20 (medians of 7, of 500 and 63 MB, on 2 cores).

A slot is taken with a lock of POSIX on a byte of the file, which the system gives back when its holder is killed. Such
locks are between processes, not threads, and closing any other descriptor of the segment in a process gives them back:
a process holds a segment once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import sys
import tempfile
from enum import IntEnum

from microkernel.errors import DataLoss, Invalid, PreconditionFailed
from services.training.checkpoints.image import HUGE, PAGE, aligned

__all__ = ["SLOTS", "Content", "Segment"]

SLOTS = 2
MAGIC = b"mktrain1"
HEAD = struct.Struct("<8sQQ")  # magic, bytes of a room, bytes of a slot
SLOT = struct.Struct("<QQQ")  # turn, what the room holds, how many bytes of it
MADV_HUGEPAGE = 14  # madvise(2); the module mmap has no names for these two on Python 3.11
MADV_POPULATE_WRITE = 23


class Content(IntEnum):
    """What the room of a slot holds."""

    NOTHING = 0
    FACTS = 1  # the slot is full, and waits or is being written
    MANIFEST = 2  # the slot is written, and is what the manifest says


class Segment:
    """The memory, at either end. Raises `DataLoss` where `handle` is none of ours; the handle is its own from then."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        size = os.fstat(handle).st_size
        if size < PAGE:
            raise DataLoss(f"the shared memory has {size} bytes: it is no segment of checkpoints")
        self._memory = mmap.mmap(handle, size)
        magic, self.room, self.slot = HEAD.unpack_from(self._memory)
        if magic != MAGIC or size != _begin(self.room) + SLOTS * self.slot:
            self.close()
            raise DataLoss("the shared memory is no segment of checkpoints")

    @classmethod
    def create(cls, room: int, slot: int) -> Segment:
        """A segment with `slot` bytes (a multiple of `HUGE`) for each checkpoint and `room` for what is said of it.

        Raises `PreconditionFailed` where there is not so much memory.
        """
        room = aligned(room, PAGE)
        size = _begin(room) + SLOTS * slot
        handle = _anonymous_file()
        try:
            os.ftruncate(handle, size)
            os.pwrite(handle, HEAD.pack(MAGIC, room, slot), 0)
            segment = cls(handle)
            segment.populate()
        except OSError as error:
            os.close(handle)
            raise PreconditionFailed(
                f"{size / 1e6:.0f} MB of shared memory for checkpoints cannot be had: {error.strerror}",
                remedy="free memory, or train a smaller model",
            ) from error
        return segment

    def populate(self) -> None:
        """Make all pages now, huge ones where the system has them for shared memory."""
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # a kernel without huge pages: small ones do
                self._memory.madvise(MADV_HUGEPAGE)
            try:
                self._memory.madvise(MADV_POPULATE_WRITE)
            except OSError as error:
                if error.errno != errno.EINVAL:  # as before Linux 5.14
                    raise
            else:
                return
        for place in range(PAGE, len(self._memory), PAGE):
            self._memory[place] = 0

    def take(self, slot: int) -> bool:
        """Whether the slot is this process's own now; it never waits."""
        try:
            fcntl.lockf(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            return False
        return True

    def give(self, slot: int) -> None:
        """Give it back."""
        fcntl.lockf(self.handle, fcntl.LOCK_UN, 1, slot)

    def bytes_of(self, slot: int) -> memoryview:
        """The memory of a slot; let go of it before `close`."""
        start = _begin(self.room) + slot * self.slot
        return memoryview(self._memory)[start : start + self.slot]

    def turn(self, slot: int) -> int:
        """How often the segment's slots had been filled when this one was begun last."""
        return int(SLOT.unpack_from(self._memory, self._words(slot))[0])

    def say(self, slot: int, turn: int, content: Content, told: bytes = b"") -> None:
        """Say what the slot is; who takes it first says `NOTHING`. Raises `Invalid` where the room is too small."""
        if len(told) > self.room:
            raise Invalid(f"{len(told)} bytes of facts are too many for the {self.room} that are kept for them")
        place = PAGE + slot * self.room
        SLOT.pack_into(self._memory, self._words(slot), turn, Content.NOTHING, 0)
        self._memory[place : place + len(told)] = told
        SLOT.pack_into(self._memory, self._words(slot), turn, content, len(told))

    def told(self, slot: int) -> tuple[Content, bytes]:
        """What was said of a slot. It is as its writer left it, whoever that was: check it."""
        _, content, length = SLOT.unpack_from(self._memory, self._words(slot))
        if content not in {Content.FACTS, Content.MANIFEST} or length > self.room:
            return Content.NOTHING, b""
        place = PAGE + slot * self.room
        return Content(content), self._memory[place : place + length]

    def close(self) -> None:
        """Let go of the memory: it is gone when all have."""
        self._memory.close()
        os.close(self.handle)

    def _words(self, slot: int) -> int:
        return HEAD.size + slot * SLOT.size


def _begin(room: int) -> int:
    """The byte at which slots begin."""
    return aligned(PAGE + SLOTS * room, HUGE)


def _anonymous_file() -> int:
    if sys.platform == "linux":
        return os.memfd_create("training-checkpoints")
    else:  # noqa: RET505 - which platform it is for is clear to mypy this way only
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
