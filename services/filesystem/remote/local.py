"""A folder of this machine, as `file://` names it: no name and no link in it leads out.

What is asked for is resolved, links and all, and has to be below the root. It is then opened folder by folder from the
root on, and no link is followed in that: so one that is put there in between leads nowhere.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
import stat
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from microkernel.errors import Invalid, NotFound, Unavailable
from services.filesystem.remote.address import Address
from services.filesystem.remote.faults import changed_meanwhile, faults_named
from services.filesystem.remote.secrets import Secrets
from services.filesystem.remote.store import PARTIAL, Found, Names, digest_of, is_name, shown
from services.filesystem.remote.workers import Workers
from services.filesystem.volume import CHUNK

__all__ = ["LocalStore"]

T = TypeVar("T")

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # not to wait for who writes to a pipe
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
THREADS = 4
COPY = 4 << 20


class LocalStore:
    """Files below a folder. `atomic`: what is put is written beside, synced and renamed."""

    atomic = True
    moves_folders = True

    def __init__(self, place: str, address: Address, timeout: float) -> None:
        """`place` is where it is mounted. `timeout` is in seconds, for each call: its disk may be far away."""
        self.place = place
        self._address = address
        self._root = address.url.partition("://")[2]
        self._secrets = Secrets()
        self._workers = Workers(THREADS, "mount-file", timeout)

    async def find(self, names: Names) -> Found:
        def work() -> Found:
            with self._opened(names, os.O_RDONLY | os.O_NONBLOCK) as handle:
                found = _found(names[-1] if names else "", os.fstat(handle))
            if names and Path(os.path.realpath(self._root), *self._real(names[:-1]), names[-1]).is_symlink():
                return msgspec.structs.replace(found, link=True)
            return found

        return await self._run(names, work)

    async def list(self, names: Names) -> list[Found]:
        def work() -> list[Found]:
            with self._opened(names, FOLDER) as handle:
                return [found for name in os.listdir(handle) if (found := self._child(handle, names, name))]  # noqa: PTH208 - of a handle

        return await self._run(names, work)

    async def fetch(self, names: Names, found: Found, start: int, stop: int) -> bytes:
        def work() -> bytes:
            with self._opened(names, READ) as handle:
                content = os.pread(handle, stop - start, start)  # all of it, but where a signal comes in between
                while start + len(content) < stop and (more := os.pread(handle, stop - start, start + len(content))):
                    content += more
                if _found(names[-1], os.fstat(handle)).mark != found.mark:
                    raise changed_meanwhile(self._shown(names))
                return content[: stop - start]

        return await self._run(names, work)

    async def stream(self, names: Names, found: Found, start: int) -> AsyncGenerator[bytes, None]:
        while piece := await self.fetch(names, found, start, start + CHUNK):
            start += len(piece)
            yield piece

    async def put(self, names: Names, content: Path) -> None:
        def work() -> None:
            real = self._real(names)
            with self._folder(real[:-1]) as folder:
                beside = PARTIAL + secrets.token_hex(8)
                try:
                    with (
                        content.open("rb") as source,
                        os.fdopen(os.open(beside, NEW, 0o666, dir_fd=folder), "wb") as to,
                    ):
                        _take_rights(real[-1], folder, to.fileno())
                        shutil.copyfileobj(source, to, COPY)
                        to.flush()
                        os.fsync(to.fileno())
                    os.rename(beside, real[-1], src_dir_fd=folder, dst_dir_fd=folder)
                    os.fsync(folder)
                except BaseException:
                    _forget(beside, folder)
                    raise

        await self._run(names, work, times=math.inf)

    async def make_folder(self, names: Names) -> None:
        def work() -> None:
            real = self._real(names)
            for end in range(1, len(real) + 1):
                with self._folder(real[: end - 1]) as folder:
                    try:
                        os.mkdir(real[end - 1], dir_fd=folder)
                    except FileExistsError:
                        continue  # as a folder, or the next step says that it is none

        await self._run(names, work)

    async def remove(self, names: Names, *, folder: bool) -> None:
        def work() -> None:
            with self._folder(self._real(names[:-1])) as above:  # a link is removed itself, not what it leads to
                if folder and not stat.S_ISLNK(os.stat(names[-1], dir_fd=above, follow_symlinks=False).st_mode):
                    os.rmdir(names[-1], dir_fd=above)
                else:
                    os.unlink(names[-1], dir_fd=above)

        await self._run(names, work)

    async def move(self, names: Names, to: Names) -> None:
        def work() -> None:
            with self._folder(self._real(names[:-1])) as source, self._folder(self._real(to[:-1])) as target:
                os.rename(names[-1], to[-1], src_dir_fd=source, dst_dir_fd=target)
                os.fsync(target)

        await self._run(names, work)

    async def copy(self, names: Names, to: Names) -> None:
        await self.put(to, Path(self._root, *await self._run(names, lambda: self._real(names))))

    async def close(self) -> None:
        await self._workers.close()

    async def _run(self, names: Names, work: Callable[[], T], *, times: float = 1.0) -> T:
        with faults_named(self._shown(names), self._address, self._secrets):
            return await self._workers.run(work, times=times)

    def _shown(self, names: Names) -> str:
        return shown(self.place, names)

    def _real(self, names: Names) -> Names:
        """The way from the root, without links. Raises `NotFound` for one that leads out."""
        root = os.path.realpath(self._root)
        real = os.path.realpath(Path(root, *names))
        if real != root and not real.startswith(root.rstrip("/") + "/"):
            raise NotFound(
                f"there is no {self._shown(names)}: a link leads out of the mount",
                field="path",
                remedy="mount its target",
            )
        return tuple(name for name in real[len(root) :].split("/") if name)

    @contextmanager
    def _folder(self, real: Names) -> Iterator[int]:
        """A folder that is open, reached without a link."""
        try:
            handle = os.open(os.path.realpath(self._root), FOLDER)
        except FileNotFoundError:
            raise Unavailable("the folder of the mount is not there", remedy="make it, or mount another one") from None
        try:
            for name in real:
                inner = os.open(name, FOLDER, dir_fd=handle)
                os.close(handle)
                handle = inner
            yield handle
        finally:
            os.close(handle)

    @contextmanager
    def _opened(self, names: Names, flags: int) -> Iterator[int]:
        """What names lead to, open: a file or a folder, nothing else."""
        real = self._real(names)
        if not real:
            with self._folder(()) as root:
                yield root
            return
        with self._folder(real[:-1]) as folder:
            handle = os.open(real[-1], flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            mode = os.fstat(handle).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise Invalid(f"{self._shown(names)} is neither a file nor a folder", field="path")
            yield handle
        finally:
            os.close(handle)

    def _child(self, folder: int, names: Names, name: str) -> Found | None:
        """A name in a folder; None for what is not shown: no name here, a link that leads out, a device."""
        if not is_name(name):
            return None
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            link = stat.S_ISLNK(found.st_mode)
            if link:
                found = Path(os.path.realpath(self._root), *self._real((*names, name))).lstat()
        except (OSError, NotFound):
            return None
        return _found(name, found, link=link) if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode) else None


def _found(name: str, told: os.stat_result, *, link: bool = False) -> Found:
    if stat.S_ISDIR(told.st_mode):
        return Found(name, folder=True, modified=told.st_mtime, link=link)
    marks: tuple[Any, ...] = (told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns)
    return Found(
        name, folder=False, size=told.st_size, modified=told.st_mtime, mark=digest_of(map(str, marks)), link=link
    )


def _take_rights(name: str, folder: int, to: int) -> None:
    """Give a file the rights of the one that it replaces; a new one has those that this process gives."""
    try:
        os.fchmod(to, stat.S_IMODE(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode))
    except FileNotFoundError:
        return


def _forget(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return
