"""Pages on disk, by content key: what was computed once is read again after a restart, or after another model's turn.

A file a page, named by its key, written under another name first, so that what is there is whole; a checksum finds
what a power cut or a disk has damaged. A limit of bytes is kept by deleting what was used longest ago. One thread of
its own reads and writes; asking and looking up never wait for it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import zlib
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from microkernel.errors import Invalid

__all__ = ["Loading", "SavedPages"]

MAGIC = b"mkpage1\n"
WAITING = 128 << 20  # bytes that may wait to be written; what comes on top is not saved
AHEAD = 8  # pages that are read before the first of them is taken
KEY = 64  # hexadecimal digits


class SavedPages:
    """The pages in one folder, of all models that save there. Safe to use from several threads."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Look through `folder`, which is made if it is not there. Where it cannot be used, nothing is saved."""
        if limit_bytes < 0:
            raise Invalid(f"{limit_bytes} bytes are no limit", field="limit_bytes", remedy="0 saves nothing")
        self._folder = folder
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # least recently used first
        self._bytes = 0
        self._pending: dict[bytes, int] = {}  # waits to be written
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saved pages")
        self.failed = ""  # why the last write was given up
        self._scan()

    @property
    def nbytes(self) -> int:
        """What all files take."""
        return self._bytes

    @property
    def count(self) -> int:
        """How many pages there are."""
        return len(self._sizes)

    def resize(self, limit_bytes: int) -> None:
        """Take so many bytes at most from now on."""
        self._limit = limit_bytes
        self._thread.submit(self._trim)

    def find(self, keys: Sequence[bytes]) -> int:
        """How many of `keys`, from the first on, are there without a gap."""
        with self._lock:
            for index, key in enumerate(keys):
                if key not in self._sizes:
                    return index
        return len(keys)

    def has(self, key: bytes) -> bool:
        """Whether a page is there or about to be."""
        with self._lock:
            return key in self._sizes or key in self._pending

    def save(self, key: bytes, content: bytes) -> bool:
        """Have a page written; False where it is not going to be, because too much waits already, or it is there."""
        with self._lock:
            known = key in self._sizes or key in self._pending
            if known or len(content) > self._limit or self._waiting + len(content) > WAITING:
                return False
            self._pending[key] = len(content)
            self._waiting += len(content)
        self._thread.submit(self._write, key, content)
        return True

    def load(self, keys: Sequence[bytes]) -> Loading:
        """Begin to read pages, in order."""
        return Loading(self, keys)

    def flush(self) -> None:
        """Wait until all that was to be saved is written."""
        self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self._thread.shutdown()

    def begin_reading(self, key: bytes) -> Future[bytes | None]:
        """A page's content, None where it is not there or damaged; then it is forgotten."""
        return self._thread.submit(self._read, key)

    def _scan(self) -> None:
        found = []
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for entry in os.scandir(self._folder):
                if len(entry.name) == KEY and entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(ValueError):  # a file of somebody else's
                        facts = entry.stat()
                        found.append((facts.st_mtime, bytes.fromhex(entry.name), facts.st_size))
                elif entry.name.endswith(".new"):
                    Path(entry.path).unlink()  # a write that a crash has cut off
        except OSError as error:
            self.failed = f"{self._folder}: {error.strerror}"
        for _, key, size in sorted(found):
            self._sizes[key] = size
            self._bytes += size
        self._trim()

    def _path(self, key: bytes) -> Path:
        return self._folder / key.hex()

    def _write(self, key: bytes, content: bytes) -> None:
        path = self._path(key)
        fresh = path.with_suffix(".new")
        head = MAGIC + zlib.crc32(content).to_bytes(4, "little")
        try:
            with open(fresh, "wb", opener=_private) as file:
                file.write(head)
                file.write(content)
            fresh.replace(path)
        except OSError as error:
            self.failed = f"{self._folder}: {error.strerror}"
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            with self._lock:
                self._waiting -= self._pending.pop(key)
            return
        with self._lock:
            self._waiting -= self._pending.pop(key)
            self._sizes[key] = len(head) + len(content)
            self._bytes += self._sizes[key]
        self._trim()

    def _read(self, key: bytes) -> bytes | None:
        path = self._path(key)
        try:
            data = path.read_bytes()
            content = data[len(MAGIC) + 4 :]
            if data[: len(MAGIC)] == MAGIC and zlib.crc32(content) == int.from_bytes(data[len(MAGIC) :][:4], "little"):
                with self._lock:
                    if key in self._sizes:
                        self._sizes.move_to_end(key)
                os.utime(path)  # for the order of the next start
                return content
        except OSError as error:
            self.failed = f"{self._folder}: {error.strerror}"
        self._forget(key)
        return None

    def _trim(self) -> None:
        """Delete what was used longest ago, down to the limit."""
        while True:
            with self._lock:
                if self._bytes <= self._limit or not self._sizes:
                    return
                key = next(iter(self._sizes))
            self._forget(key)

    def _forget(self, key: bytes) -> None:
        with self._lock:
            self._bytes -= self._sizes.pop(key, 0)
        with contextlib.suppress(OSError):  # counted out all the same: the next start finds it again
            self._path(key).unlink(missing_ok=True)


class Loading:
    """Pages that are being read, in order, a few ahead of who takes them."""

    def __init__(self, saved: SavedPages, keys: Sequence[bytes]) -> None:
        self._saved = saved
        self._left = deque(keys)
        self._reading: deque[Future[bytes | None]] = deque()
        self._ahead()

    @property
    def done(self) -> bool:
        """Whether nothing more comes."""
        return not self._reading

    def take(self, *, wait: float = 0.0) -> list[bytes]:
        """The contents that have come since, in order; after `wait` seconds at most. Ends early at a damaged page."""
        contents: list[bytes] = []
        while self._reading:
            first = self._reading[0]
            if not first.done() and (contents or wait <= 0.0):
                break
            try:
                content = first.result(wait)
            except TimeoutError:
                break
            self._reading.popleft()
            if content is None:
                self.cancel()
                break
            contents.append(content)
            self._ahead()
        return contents

    def cancel(self) -> None:
        """Read no more."""
        self._left.clear()
        for future in self._reading:
            future.cancel()
        self._reading.clear()

    def _ahead(self) -> None:
        while self._left and len(self._reading) < AHEAD:
            self._reading.append(self._saved.begin_reading(self._left.popleft()))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
