"""How a model comes onto a device: where it may go, what it takes there, its weights, and its first token."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

from microkernel.errors import NotFound, Overloaded, from_exception
from microkernel.executor import Executor
from microkernel.message import convert
from microkernel.service import Service
from services.devices.messages import Device, FindTuning, Tuning
from services.inference.cache.ledger import NODE
from services.inference.cache.saved import SavedPages
from services.inference.decoders import Computing
from services.inference.generation import Generation
from services.inference.housekeeping import SAVED
from services.inference.loaded import Loaded
from services.inference.messages import OutputParams
from services.inference.opened import Opened, fit, open_model
from services.inference.place import Place, Places
from services.inference.placement import devices_for, has_own_memory
from services.inference.settings import InferenceSettings
from services.inference.sizes import Sizes, sizes_of
from services.inference.stored_models import StoredModels
from services.inference.text.detokenizer import IncrementalText
from services.inference.text.stops import StopMatcher
from services.memory.messages import Reservation, Reserve, Tier
from services.models.messages import Model

__all__ = ["Loader"]


class Loader:
    """Puts models onto devices, one at a time."""

    def __init__(
        self,
        service: Service,
        settings: InferenceSettings,
        places: Places,
        stored: StoredModels,
        numbers: itertools.count[int],
    ) -> None:
        """`numbers` gives each first token one."""
        self._service = service
        self._settings = settings
        self._places = places
        self._stored = stored
        self._numbers = numbers
        self._saved: SavedPages | None = None
        self._one_at_a_time = asyncio.Lock()  # what is being loaded cannot give way yet

    async def put(self, model: Model, enter: Callable[[Loaded], None]) -> Loaded:
        """The model on the first device that takes it: where one says no, that is logged, and the next is tried.

        `enter` is called with it before another one is put anywhere. Raises whatever the last device says.
        """
        *first, last = await devices_for(self._service, self._settings.device)
        for device in first:
            try:
                return await self._put_on(model, device, enter)
            except Exception as error:  # noqa: BLE001 - whatever a device's library raises, another may do
                failure = from_exception(error, service=self._service.name)
                self._service.log.warning("model '%s' is not put on %s: %s", model.name, device.name, failure.message)
        return await self._put_on(model, last, enter)

    async def _put_on(self, model: Model, device: Device, enter: Callable[[Loaded], None]) -> Loaded:
        began = self._service.clock.now()
        executor = self._service.executor(device.name)
        place = await self._places.at(device)
        computing = place.computing
        if not computing.prepared:
            self._service.publish("inference.loading", model=model.name, stage="preparing")
            await executor.run(computing.prepare)
        self._service.publish("inference.loading", model=model.name, stage="reading")
        opened = await executor.run(open_model, Path(model.path), computing, model.digest)
        if opened.plan.why and device.kind == "cpu":  # elsewhere nobody expects our kernels
            self._service.log.warning("model '%s' is not computed by our kernels: %s", model.name, opened.plan.why)
        async with self._one_at_a_time:
            loaded = await self._bring(model, opened, device, place)
            enter(loaded)
        seconds = self._service.clock.now() - began
        self._service.log.info("model '%s' is ready on %s after %.1f s", model.name, device.name, seconds)
        await place.memory.tick()
        return loaded

    async def _bring(self, model: Model, opened: Opened, device: Device, place: Place) -> Loaded:
        """Take memory for an opened model, read its weights, and have it make a token."""
        executor = self._service.executor(device.name)
        sizes = await self._sizes(opened, device)
        limit = int(device.memory_free_bytes * self._settings.cache_share)
        longest = self._settings.context_length
        budget = sizes.token_budget
        asked = await executor.run(partial(fit, opened, sizes.slots, longest, limit, token_budget=budget))
        config = opened.checkpoint.config
        given = await place.room.take(model.name, asked, config.parameters)
        size = given.size
        if size.length < (longest := min(config.context_length, longest or config.context_length)):
            self._service.log.warning(
                "model '%s' has a context of %d tokens instead of %d: no more fit", model.name, size.length, longest
            )
        fixed = given.fixed
        loaded: Loaded | None = None
        try:
            draft = await self._draft(opened, place.computing, executor)
            if draft is not None:
                guessing = draft.plan.weight_bytes + size.cache_bytes // size.page_bytes * draft.plan.page_bytes
                fixed.append(await place.room.reserve(f"draft model of '{model.name}'", guessing))
            host = await self._reserve_host(model.name, device)
            if host is not None:
                fixed.append(host)
            self._service.publish("inference.loading", model=model.name, stage="loading", bytes=size.weight_bytes)
            loaded = await Loaded.load(
                model.name,
                opened,
                size,
                sizes,
                executor,
                self._service.clock.now,
                settings=self._settings,
                saved=await self._contexts(place),
                draft=draft,
                host_bytes=0 if host is None else host.bytes,
                ledger=place.ledger,
            )
            loaded.reservations, loaded.pages = fixed, given.pages
            loaded.ref = model.ref
            loaded.task = self._service.spawn(loaded.runner.run(), name=f"run {model.name}")
            self._service.publish("inference.loading", model=model.name, stage="warming")
            await self._first_token(loaded)
        except BaseException:
            if loaded is not None:
                await loaded.close()
            await place.room.give_back([*fixed, given.pages])
            raise
        return loaded

    async def close(self) -> None:
        """End the thread of the disk."""
        if self._saved is not None:
            await asyncio.to_thread(self._saved.close)

    async def _sizes(self, opened: Opened, device: Device) -> Sizes:
        """As set, or as measured on this machine before."""
        ask = FindTuning(device=device.name, subject=opened.subject)
        found = await self._service.call("devices.find_tuning", ask)
        return sizes_of(self._settings, None if found is None else convert(found, Tuning))

    async def _draft(self, opened: Opened, computing: Computing, executor: Executor) -> Opened | None:
        """The model that guesses for this one, where the settings name one that has the same tokens."""
        ref = self._settings.speculation
        if ref in {"off", "lookup"}:
            return None
        model = await self._stored.find(ref)
        draft = await executor.run(open_model, Path(model.path), computing, model.digest)
        ours, theirs = opened.checkpoint.config.vocab_size, draft.checkpoint.config.vocab_size
        if ours != theirs or opened.digest == draft.digest:
            self._service.log.info("model '%s' does not guess for one of %d tokens: it has %d", ref, ours, theirs)
            return None
        return draft

    async def _contexts(self, place: Place) -> SavedPages | None:
        """The contexts on disk, of all models; looked through when the first model is loaded."""
        if self._saved is None and self._settings.contexts_bytes > 0:
            self._saved = await asyncio.to_thread(
                SavedPages, self._service.state_dir / "contexts", self._settings.contexts_bytes
            )
            if self._saved.failed:
                self._service.log.warning("contexts are not saved: %s", self._saved.failed)
            await self._reserve_disk(self._saved, place.device)
            place.memory.saved = self._saved
        return self._saved

    async def _reserve_host(self, name: str, device: Device) -> Reservation | None:
        """The machine's memory for pages that `device` has no room for; None where it has none of its own, or no room.

        Nobody has to make room for it: a model answers without.
        """
        if not self._settings.host_bytes or not has_own_memory(device):
            return None
        ask = Reserve(purpose=f"pages of '{name}' beside {device.name}", bytes=self._settings.host_bytes)
        try:
            return convert(await self._service.call("memory.reserve", ask), Reservation)
        except (Overloaded, NotFound) as error:  # a node may have no CPU driver
            self._service.log.warning("pages of '%s' are not kept in the machine's memory: %s", name, error.message)
            return None

    async def _reserve_disk(self, saved: SavedPages, device: str) -> None:
        """Count what saved contexts may come to take of the disk: as much as is set, or as there is."""
        wanted = self._settings.contexts_bytes
        ask = Reserve(purpose=SAVED, bytes=wanted, device=device, tier=Tier.DISK, at_least=0, taken=saved.nbytes)
        given = convert(await self._service.call("memory.reserve", ask), Reservation)
        if given.bytes < wanted:
            self._service.log.warning(
                "%d bytes of disk for saved contexts, not %d: no more are free", given.bytes, wanted
            )
            saved.resize(given.bytes)

    async def _first_token(self, loaded: Loaded) -> None:
        """Have one real token made: a model is ready when it has answered, not when it was read."""
        number = next(self._numbers)
        prompt = [min(loaded.tokenizer.eos_ids, default=0)]
        request = loaded.request(number, prompt, OutputParams(temperature=0.0), 1, self._settings.sampling, owner=NODE)
        generation = Generation(
            number,
            text=IncrementalText(loaded.tokenizer),
            stops=StopMatcher([]),
            prompt_tokens=len(prompt),
            began=self._service.clock.now(),
        )
        loaded.runner.submit(request, generation)
        while await generation.read():
            pass
