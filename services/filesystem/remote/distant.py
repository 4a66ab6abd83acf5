"""A store that fsspec reaches: each name is put behind the root as it is, or refused where it would be read otherwise.

A back end that runs on fsspec's own loop is asked there, and a question that nobody waits for is cancelled. One that
blocks is asked on threads of the mount's own, so that a store that does not answer holds nobody else up. Only calls for
one file are made: those for many take `*`, `?` and `[` for patterns.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import secrets as random
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
import fsspec.asyn

from microkernel.errors import Invalid, Unimplemented
from services.filesystem.remote.address import Address
from services.filesystem.remote.cache import BLOCK
from services.filesystem.remote.faults import changed_meanwhile, faults_named
from services.filesystem.remote.secrets import Secrets, options_from
from services.filesystem.remote.store import PARTIAL, Found, Names, is_name, mark_of, shown
from services.filesystem.remote.workers import Workers
from services.filesystem.volume import CHUNK

__all__ = ["DistantStore"]

THREADS = 8  # questions at once to a back end that blocks
PIECE = 4 * CHUNK  # bytes that are asked of a stream at once

ARCHIVES = frozenset({"zip", "tar", "libarchive"})  # they unpack from the beginning of a file on
WHOLE = frozenset(
    {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "oss", "oci"}
)  # a file is there once it is whole
RENAMES = frozenset({"memory", "sftp", "ssh", "ftp", "smb", "hdfs", "arrow_hdfs", "webhdfs"})

# What a store reads out of a name, besides what fsspec does.
READ_OUT = {
    "s3": "?versionId=", "s3a": "?versionId=", "gs": "#", "gcs": "#", "az": "?versionid=", "abfs": "?versionid=",
    "abfss": "?versionid=",
}  # fmt: skip
REVISION_IN = 3  # names from the top of a hub, in which `@` is the beginning of a revision


class DistantStore:
    """Files and folders below a URL."""

    moves_folders = False

    def __init__(
        self, place: str, address: Address, options: Mapping[str, Any], variables: Mapping[str, str], timeout: float
    ) -> None:
        """`place` is where it is mounted; `variables` names those of the environment that hold credentials; `timeout`
        is in seconds, for each call.
        """
        self.place = place
        self._address = address
        self._options = options
        self._variables = variables
        self._timeout = timeout
        self._secrets = Secrets()
        self._workers = Workers(THREADS, f"mount-{address.kind}", timeout)
        self._opening = asyncio.Lock()
        self._fs: Any = None
        self._root = ""

    @property
    def atomic(self) -> bool:
        """Whether a file is there whole or not at all."""
        return self._address.kind in WHOLE | RENAMES

    async def find(self, names: Names) -> Found:
        path = await self._path(names)
        await self._forget()
        return self._found(names[-1] if names else "", await self._ask(names, "info", path))

    async def list(self, names: Names) -> list[Found]:
        path = await self._path(names)
        await self._forget()
        listed = await self._ask(names, "ls", path, detail=True)
        place = path.strip("/")
        found: dict[str, Found] = {}
        for each in listed:
            whole = str(each["name"]).strip("/")
            above, _, name = whole.rpartition("/")
            if whole == place and each.get("type") == "file":
                raise Invalid(f"{self._shown(names)} is a file", field="path")
            if above.strip("/") == place and is_name(name):
                found[name] = self._found(name, each)
        return list(found.values())

    async def fetch(self, names: Names, found: Found, start: int, stop: int) -> bytes:
        path = await self._path(names)
        more: dict[str, Any] = {"cache_type": "none"} if self._address.kind == "hf" else {}
        times = 1 + (stop - start) / BLOCK
        content: bytes = await self._ask(names, "cat_file", path, times=times, start=start, end=stop, **more)
        await self._check(names, found)
        return content

    async def stream(self, names: Names, found: Found, start: int) -> AsyncGenerator[bytes, None]:
        path = await self._path(names)
        fs = await self._open(names)
        with faults_named(self._shown(names), self._address, self._secrets):
            handle = await self._workers.to_its_end(lambda: _opened_at(fs, path, start))
        try:
            await self._check(names, found)
            while True:
                with faults_named(self._shown(names), self._address, self._secrets):
                    piece: bytes = await self._workers.to_its_end(lambda: handle.read(PIECE))
                if not piece:
                    return
                yield piece
        finally:
            await self._workers.to_its_end(handle.close)

    async def put(self, names: Names, content: Path) -> None:
        path = await self._path(names)
        if self._address.kind not in RENAMES:
            await self._ask(names, "put_file", str(content), path, times=math.inf)
            return
        beside = await self._path((*names[:-1], PARTIAL + random.token_hex(8)))
        try:
            await self._ask(names, "put_file", str(content), beside, times=math.inf)
            await self._rename(names, beside, path)
        except BaseException:
            await asyncio.shield(self._try("rm_file", beside))
            raise

    async def make_folder(self, names: Names) -> None:
        await self._ask(names, "makedirs", await self._path(names), exist_ok=True)

    async def remove(self, names: Names, *, folder: bool) -> None:
        path = await self._path(names)
        if not folder:
            await self._ask(names, "rm_file", path)
        elif not await self._try("rmdir", path):
            await self._forget()  # a store without folders has none that is empty

    async def move(self, names: Names, to: Names) -> None:
        path, target = await self._path(names), await self._path(to)
        if self._address.kind in RENAMES:
            await self._rename(names, path, target)
            return
        await self._ask(names, "cp_file", path, target, times=math.inf)
        await self._ask(names, "rm_file", path)

    async def copy(self, names: Names, to: Names) -> None:
        await self._ask(names, "cp_file", await self._path(names), await self._path(to), times=math.inf)

    async def close(self) -> None:
        fs, self._fs = self._fs, None
        if fs is not None and self._address.kind in ARCHIVES:
            await self._workers.run(fs.close)
        await self._workers.close()

    async def _open(self, names: Names) -> Any:
        """The file system of the library; made at the first use, which imports, resolves and connects."""
        async with self._opening:
            if self._fs is None:
                options, self._secrets = options_from(self._options, self._variables)
                self._fs, self._root = await self._thread(names, lambda: _connect(self._address.url, options))
            return self._fs

    async def _path(self, names: Names) -> str:
        """Names behind the root, as the store has them. Raises `Invalid` for names that it reads otherwise."""
        fs = await self._open(names)
        path = self._join(names)
        self._check_names(names)
        if str(type(fs)._strip_protocol(path)).strip("/") != path.strip("/"):  # noqa: SLF001 - each store's own reading
            raise self._otherwise(names)
        return path

    def _shown(self, names: Names) -> str:
        return shown(self.place, names)

    def _join(self, names: Names) -> str:
        root = self._root if not self._root or self._root.endswith("/") else self._root + "/"
        return root + "/".join(names) if names else self._root

    def _check_names(self, names: Names) -> None:
        kind = self._address.kind
        above = self._root.strip("/").count("/") + 1 if self._root.strip("/") else 0
        for depth, name in enumerate(names, start=above):
            if (
                "::" in name
                or (kind in READ_OUT and READ_OUT[kind].lower() in name.lower())
                or (kind == "hf" and "@" in name and depth < REVISION_IN)
            ):
                raise self._otherwise(names)

    def _otherwise(self, names: Names) -> Invalid:
        return Invalid(
            f"{self._address.kind}:// takes {self._shown(names)!a} for something else",
            field="path",
            remedy="give it another name there",
        )

    async def _check(self, names: Names, found: Found) -> None:
        """Raises `Aborted` where a file is not any more what was found."""
        if (await self.find(names)).mark != found.mark:
            raise changed_meanwhile(self._shown(names))

    def _found(self, name: str, told: Mapping[str, Any]) -> Found:
        if told.get("type") == "directory":
            return Found(name, folder=True, modified=_time_of(told))
        size = told.get("size")
        return Found(
            name,
            folder=False,
            size=size if isinstance(size, int) else None,
            modified=_time_of(told),
            mark=mark_of(dict(told)),
            ranges=self._address.kind not in ARCHIVES and told.get("partial") is not False,
        )

    async def _forget(self) -> None:
        """Have the library ask again: what is remembered is remembered by the mount."""
        if self._fs is not None:
            self._fs.invalidate_cache()

    async def _rename(self, names: Names, path: str, to: str) -> None:
        if self._address.kind == "memory":  # its `mv` takes patterns; a copy is there at once
            await self._ask(names, "cp_file", path, to)
            await self._ask(names, "rm_file", path)
        else:
            await self._ask(names, "mv", path, to)

    async def _try(self, name: str, path: str) -> bool:
        """Ask, where it does not matter what comes of it."""
        try:
            await self._ask((), name, path)
        except (Invalid, Unimplemented):
            return False
        return True

    async def _ask(self, names: Names, call: str, *args: Any, times: float = 1.0, **fields: Any) -> Any:
        """Call the library, wherever it runs; `times` is of the limit on how long that takes."""
        fs = await self._open(names)
        with faults_named(self._shown(names), self._address, self._secrets):
            coroutine = getattr(fs, f"_{call}", None)
            if fs.async_impl and inspect.iscoroutinefunction(coroutine):
                return await self.on_its_loop(coroutine, *args, times=times, **fields)
            work = functools.partial(getattr(fs, call), *args, **fields)
            return await self._workers.run(work, times=times)

    async def on_its_loop(self, coroutine: Callable[..., Any], *args: Any, times: float = 1.0, **fields: Any) -> Any:
        """Run a back end's coroutine on fsspec's loop; cancelled there when it is here."""
        running = asyncio.run_coroutine_threadsafe(coroutine(*args, **fields), fsspec.asyn.get_loop())
        async with asyncio.timeout(None if math.isinf(times) else self._timeout * times):
            return await asyncio.wrap_future(running)

    async def _thread(self, names: Names, work: Callable[[], Any]) -> Any:
        with faults_named(self._shown(names), self._address, self._secrets):
            return await self._workers.run(work)


def _connect(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    # An instance of its own: those that fsspec shares are kept with their credentials, and with others' listings.
    made: tuple[Any, str] = fsspec.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False, **options)
    return made


def _opened_at(fs: Any, path: str, start: int) -> Any:
    handle = fs.open(path, "rb")
    try:
        handle.seek(start)
    except BaseException:
        handle.close()
        raise
    return handle


def _time_of(told: Mapping[str, Any]) -> float | None:
    for name in ("mtime", "LastModified", "last_modified", "modified", "created", "updated"):
        value = told.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None
