"""The tree as a file system of fsspec: what pandas, torch and others read and write by `mk:///data/x`.

After fsspec's asynchronous implementations (https://filesystem-spec.readthedocs.io/en/latest/async.html): one link to
the node, on fsspec's own loop or the caller's.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import unicodedata
import weakref
from collections.abc import AsyncGenerator
from glob import has_magic
from pathlib import Path
from typing import Any

from fsspec.asyn import get_loop, sync, sync_wrapper
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.utils import stringify_path

from services.filesystem.client.file import SMALL, AsyncTreeFile, TreeFile
from services.filesystem.client.link import Link
from services.filesystem.client.local import read_in
from services.filesystem.client.reading import TreeReader
from services.filesystem.client.upload import Upload, upload

__all__ = ["TreeFileSystem"]

AT_ONCE = 32  # files that are read, written or asked about side by side; a link carries 256 calls
WITH_HOST = re.compile(r"[^/]*:\d+(/|$)")


class TreeFileSystem(TreeReader):
    """The tree of a node: of the one that runs here, or at an `address` for which there is a `token`.

    `root` is a node's state folder, `cafile` the authority of its certificate; see `microkernel.connect`. Paths begin
    at the root: `mk:///data/x`. The address is no part of them: who hands a path on would choose whom the token of the
    environment is sent to. Errors are `OSError`s that say what the node says. Methods that read take a `version`.
    """

    protocol = "mk"
    root_marker = "/"
    _pid: int

    def __init__(
        self,
        *,
        address: str | None = None,
        token: str | None = None,
        root: str | Path | None = None,
        cafile: str | Path | None = None,
        asynchronous: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
        batch_size: int | None = None,
        **storage_options: Any,
    ) -> None:
        """`asynchronous`, `loop` and `batch_size` are fsspec's."""
        super().__init__(asynchronous=asynchronous, loop=loop, batch_size=batch_size or AT_ONCE, **storage_options)
        self.link = Link(address, token, None if root is None else Path(root), cafile)
        left = weakref.finalize(self, self.link.close_soon)
        left.atexit = False  # by then links close themselves, and are waited for

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that carries out what is not awaited; a process that was forked has one of its own, and a link."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._loop = None if self.asynchronous else get_loop()
        return self._loop

    @property
    def is_on_loop(self) -> bool:
        """Whether this is the thread of that loop, where nothing can wait for it."""
        try:
            return asyncio.get_running_loop() is self.loop
        except RuntimeError:
            return False

    def close(self) -> None:
        """Close the link; the next call opens another one."""
        sync(self.loop, self.link.aclose)

    async def aclose(self) -> None:
        """`close`, where the file system is asynchronous."""
        await self.link.aclose()

    def to_dict(self, *, include_password: bool = True) -> dict[str, Any]:
        """See fsspec; the token is a password."""
        found: dict[str, Any] = super().to_dict(include_password=include_password)
        if not include_password:
            found.pop("token", None)
        return found

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        text: str = stringify_path(path)
        if text.startswith("mk://"):
            text = text.removeprefix("mk://")
            if WITH_HOST.match(text):
                raise ValueError(f"{path} has an address in it: give it as address=…, and write mk:///data/x")
        text = unicodedata.normalize("NFC", text.removeprefix("mk::"))
        return "/" + "/".join(name for name in text.split("/") if name)

    # Writing

    async def write_whole(self, path: str, content: bytes | memoryview, if_version: int | None = None) -> None:
        """Put a content that is at hand in place of what is at a path."""
        if len(content) <= SMALL:
            await self.link.change("write", path, content=content, if_version=if_version)
        else:
            await upload(self.link, path, _one(content), if_version)

    async def _pipe_file(self, path: str, value: Any, mode: str = "overwrite", **_: Any) -> None:
        content = value if type(value) is bytes else memoryview(value).cast("B")
        await self.write_whole(self._strip_protocol(path), content, _if_version(mode))

    async def _put_file(
        self, lpath: str, rpath: str, mode: str = "overwrite", callback: Any = DEFAULT_CALLBACK, **_: Any
    ) -> None:
        path = self._strip_protocol(rpath)
        if await asyncio.to_thread(os.path.isdir, lpath):
            await self._makedirs(path, exist_ok=True)
            return
        with await asyncio.to_thread(open, lpath, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            callback.set_size(size)
            if size <= SMALL:
                content = await asyncio.to_thread(file.read, SMALL + 1)
                if len(content) <= SMALL:
                    await self.write_whole(path, content, _if_version(mode))
                    callback.relative_update(len(content))
                    return
                file.seek(0)
            await upload(self.link, path, read_in(file, callback), _if_version(mode))

    async def _touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        path = self._strip_protocol(path)
        if truncate or not await self._exists(path):
            await self.write_whole(path, b"")
            return
        info = await self._info(path)
        await Upload(self.link, path, start=info["size"], if_version=info["version"]).finish()

    async def _mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        path = self._strip_protocol(path)
        if not create_parents:
            await self.link.call("stat", self._parent(path))
        await self.link.change("make_folder", path)

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        path = self._strip_protocol(path)
        try:
            await self.link.change("make_folder", path, exist_ok=exist_ok)
        except OSError:
            if not exist_ok or not await self._isdir(path):  # where nothing can be written, it may be there too
                raise

    async def _cp_file(self, path1: str, path2: str, version: int | str | None = None, **_: Any) -> None:
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        try:
            await self.link.change("copy", path1, to=path2, version=version)
        except IsADirectoryError:  # one of the two
            if not await self._isdir(path1):
                raise
            await self._makedirs(path2, exist_ok=True)

    async def _mv_file(self, path1: str, path2: str, **_: Any) -> None:
        await self.link.change("rename", self._strip_protocol(path1), to=self._strip_protocol(path2), replace=True)

    async def _mv(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        maxdepth: int | None = None,
        **_: Any,
    ) -> None:
        if isinstance(path1, str) and isinstance(path2, str) and not has_magic(path1) and maxdepth is None:
            source, target = self._strip_protocol(path1), self._strip_protocol(path2)
            if source == target:
                return
            if path2.endswith("/") or await self._isdir(target):
                target = f"{target.rstrip('/')}/{source.rpartition('/')[2]}"
            try:
                await self._mv_file(source, target)
            except OSError as error:
                if error.errno != errno.EXDEV:  # a folder that goes to another volume is copied there
                    raise
                path1, path2, recursive = source, target, True
            else:
                return
        await self._copy(path1, path2, recursive=recursive, maxdepth=maxdepth, on_error="raise")
        await self._rm(path1, recursive=recursive, maxdepth=maxdepth)

    async def _rm_file(self, path: str, **_: Any) -> None:
        await self.link.change("remove", self._strip_protocol(path))

    async def _rmdir(self, path: str) -> None:
        path = self._strip_protocol(path)
        if await self._isfile(path):
            raise NotADirectoryError(errno.ENOTDIR, f"{path} is a file", path)
        await self._rm_file(path)

    async def _rm(
        self,
        path: Any,
        recursive: bool = False,
        batch_size: int | None = None,
        maxdepth: int | None = None,
        **_: Any,
    ) -> None:
        if maxdepth is not None:
            for each in reversed(await self._expand_path(path, recursive=recursive, maxdepth=maxdepth)):
                await self._rm_file(each)
            return
        found: list[str] = []
        for each in await self._expand_path(path):  # sorted: a folder comes before what is in it
            if not (recursive and found and f"{each}/".startswith(f"{found[-1]}/")):
                found.append(each)
        turns = asyncio.Semaphore(batch_size or self.batch_size)

        async def remove(each: str) -> None:
            async with turns:
                await self.link.change("remove", each, recursive=recursive)

        await asyncio.gather(*map(remove, found))

    touch = sync_wrapper(_touch)
    mv = sync_wrapper(_mv)
    rmdir = sync_wrapper(_rmdir)

    # Files that are open

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,  # fsspec calls it so
        **kwargs: Any,
    ) -> TreeFile:
        path = self._strip_protocol(path)
        options = sync(self.loop, self._options, path, mode, kwargs)
        return TreeFile(self, path, mode, block_size, autocommit, **options)

    async def open_async(self, path: str, mode: str = "rb", **kwargs: Any) -> AsyncTreeFile:
        """A file whose methods are awaited; `rb`, `wb` or `ab`."""
        if mode not in {"rb", "wb", "ab"} or kwargs.pop("compression", None):
            raise ValueError(f"{path} can be opened in the modes rb, wb and ab, not {mode}, without compression")
        path = self._strip_protocol(path)
        return AsyncTreeFile(self, path, mode, **await self._options(path, mode, kwargs))

    async def _options(self, path: str, mode: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What a file is opened with, as things are now."""
        if mode == "wb" or (mode == "rb" and kwargs.get("size") is not None):
            return kwargs
        try:
            info = await self._info(path, version=kwargs.get("version"))
        except FileNotFoundError:
            if mode == "rb":
                raise
            return {**kwargs, "if_version": 0}
        if info["type"] == "directory":
            raise IsADirectoryError(errno.EISDIR, f"{path} is a folder", path)
        if mode == "xb":
            raise FileExistsError(errno.EEXIST, f"{path} is there already", path)
        if mode == "ab":
            return {**kwargs, "start": info["size"], "if_version": info["version"]}
        if info["size"] is None:  # nobody knows before it is read
            content = await self._cat_file(path)
            kwargs |= {"cache_type": "all", "cache_options": {"data": content}}
            return {**kwargs, "size": len(content), "details": info}
        return {"version": info["version"], **kwargs, "size": info["size"], "details": info}


def _if_version(mode: str) -> int | None:
    if mode not in {"overwrite", "create"}:
        raise ValueError(f"mode is {mode!r}, known are 'overwrite' and 'create'")
    return 0 if mode == "create" else None


async def _one(content: bytes | memoryview) -> AsyncGenerator[bytes | memoryview, None]:
    yield content
