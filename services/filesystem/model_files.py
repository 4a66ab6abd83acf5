"""The model store as files: a folder for each model, read from where the store keeps it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec

from microkernel.errors import DataLoss, NotFound, Unavailable
from microkernel.message import convert
from microkernel.service import Service
from microkernel.threads import to_its_end
from services.filesystem.messages import FileKind, Stat
from services.filesystem.paths import TreePath
from services.filesystem.volume import (
    CHUNK,
    Version,
    a_folder,
    folder_stat,
    no_versions,
    not_a_folder,
    not_there,
    page_of,
)
from services.models.messages import Model

__all__ = ["ModelFiles"]


class _Found(msgspec.Struct, frozen=True):
    """What a path leads to: all models, one of them, or a file of one."""

    models: list[Model]
    model: Model | None = None
    file: Path | None = None


class ModelFiles:
    """Models that are in the store, by name; files of equal content are kept once there."""

    about = "models that are stored: mk pull"

    def __init__(self, service: Service, mount: TreePath) -> None:
        """`service` is whose calls ask the store."""
        self._service = service
        self._mount = mount

    async def stat(self, path: TreePath, _user: str | None, /, version: Version = None) -> Stat:
        found = await self._find(path, version)
        if found.file is not None:
            return await asyncio.to_thread(_stat, path, found.file)
        return folder_stat(path, self.about) if found.model is None else _stat_of_model(path, found.model)

    async def list(
        self, path: TreePath, _user: str | None, /, version: Version = None, *, after: str = "", limit: int = 10_000
    ) -> list[Stat]:
        found = await self._find(path, version)
        if found.file is not None:
            raise not_a_folder(path)
        if found.model is None:
            listed = [_stat_of_model(path / model.name, model) for model in found.models]
        else:
            files = await asyncio.to_thread(_files, found.model)
            listed = [await asyncio.to_thread(_stat, path / name, files[name]) for name in sorted(files)]
        return page_of(listed, after, limit)

    async def read(
        self, path: TreePath, _user: str | None, /, start: int, stop: int | None, version: Version = None
    ) -> AsyncGenerator[bytes, None]:
        found = await self._find(path, version)
        if found.file is None:
            raise a_folder(path)
        try:
            handle = await asyncio.to_thread(os.open, found.file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataLoss(f"{path} cannot be read: {error.strerror}", remedy="mk models verify") from error
        try:
            place = start
            while stop is None or place < stop:
                wanted = CHUNK if stop is None else min(CHUNK, stop - place)
                piece = await to_its_end(os.pread, handle, wanted, place)
                if not piece:
                    return
                place += len(piece)
                yield piece
        finally:
            os.close(handle)

    async def close(self) -> None:
        """Nothing is open."""

    async def _find(self, path: TreePath, version: Version) -> _Found:
        if version is not None:
            raise no_versions(path)
        try:
            models = convert(await self._service.call("models.list"), list[Model])
        except (NotFound, Unavailable):
            models = []
        names = path.below(self._mount).names
        if not names:
            return _Found(models)
        model = next((model for model in models if model.name == names[0]), None)
        if model is None or len(names) > 2:
            raise not_there(path)
        if len(names) == 1:
            return _Found(models, model)
        file = (await asyncio.to_thread(_files, model)).get(names[1])
        if file is None:
            raise not_there(path)
        return _Found(models, model, file)


def _files(model: Model) -> dict[str, Path]:
    """A model's files by name."""
    place = Path(model.path)
    if place.is_dir():
        return {path.name: path for path in place.iterdir() if path.is_file()}
    return {place.name: place}


def _stat(path: TreePath, file: Path) -> Stat:
    found = file.stat()
    return Stat(path=str(path), kind=FileKind.FILE, size=found.st_size, modified=found.st_mtime, owner="root")


def _stat_of_model(path: TreePath, model: Model) -> Stat:
    about = " ".join(part for part in (model.format, model.architecture or "", f"from {model.ref}") if part)
    return Stat(path=str(path), kind=FileKind.FOLDER, about=about, modified=model.pulled_at, owner="root")
