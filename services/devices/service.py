"""Finds drivers and their devices, starts their compute threads, tunes them, and keeps an eye on their health.

Devices that give whole answers are kept by `model_servers`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from microkernel import __version__
from microkernel.config import section_of
from microkernel.driver import Driver, DriverDevice
from microkernel.errors import Denied, Invalid, NotFound, Overloaded, PreconditionFailed, Unavailable, from_exception
from microkernel.inputs import Inputs
from microkernel.message import Message, calling_service, is_root
from microkernel.model_server import Generated, ModelServer
from microkernel.plugins import discover_drivers, load_in_thread
from microkernel.portable import (
    AHEAD,
    EntryPiece,
    Export,
    Import,
    Imported,
    check_restoring,
    only_root,
    pieces_of,
    put_file,
    read_entry,
)
from microkernel.service import Placement, Service, every, handles, streams
from services.devices.found import Found
from services.devices.kept_tunings import FILE, LARGEST, KeptTunings, check_text
from services.devices.messages import (
    AskModel,
    Device,
    FindTuning,
    KeepTuning,
    ListServed,
    Served,
    ShowDevice,
    ThreadCosts,
    Tune,
    Tuning,
    beside_others,
)
from services.devices.model_servers import ModelServers
from services.devices.others import Others, machine_cores, others_seconds
from services.devices.tuner import measure

__all__ = ["Devices"]


CLOSE_TIMEOUT = 2.5  # seconds for a quantum that runs to end when the service stops
AGAIN = 2.0  # seconds after which a device that was busy may be idle
LONGEST_PAUSE = 86_400.0  # seconds until something is tried again that others were in the way of, again and again


class DevicesSettings(Message):
    """`without` lists drivers not to use. A device that nothing was measured on yet is tuned once it was idle for
    `tune_after` seconds; with 0, only when asked. `drivers` are the sections of drivers that have settings, by name.
    """

    without: tuple[str, ...] = ()
    tune_after: float = 60.0
    drivers: dict[str, dict[str, Any]] = {}


class Devices(Service):
    """Which devices this node has, what they can do, and how they are."""

    name = "devices"
    placement = Placement.NODE
    Settings = DevicesSettings

    async def start(self) -> None:
        self._found: dict[str, Found] = {}
        self._servers = ModelServers(self)
        self._broken: dict[str, str] = {}
        self._searched = asyncio.Event()
        self._kept = await asyncio.to_thread(KeptTunings, self.state_dir / FILE)
        if self._kept.broken:
            self.log.warning("%s: devices are measured again", self._kept.broken)

    async def ready(self) -> None:
        sections = dict(self.settings.drivers)
        for plugin in await discover_drivers(without=self.settings.without):
            section = sections.pop(plugin.name, {})
            if plugin.broken is not None:
                self._lose(plugin.name, plugin.broken)
                continue
            try:
                await self._open(plugin.name, _configured(plugin.name, plugin.kind, section))
            except Invalid as error:
                self._lose(plugin.name, str(error))
            except Exception as error:  # noqa: BLE001 - one broken driver does not take the other devices along
                self._lose(plugin.name, f"{type(error).__name__}: {error}")
        for name in sections.keys() - set(self.settings.without):
            self._lose(name, f"services.devices.drivers.{name} is set, and no driver of that name is installed")
        self._searched.set()
        if not self._found and not self._servers:
            reasons = "; ".join(f"{name}: {why}" for name, why in self._broken.items()) or "no driver is installed"
            raise Unavailable(f"no device was found ({reasons})", remedy="see `mk doctor`")

    async def stop(self) -> None:
        await asyncio.gather(self._servers.close(), *(self._close(name) for name in self._found))

    @handles(name="list", idempotent=True)
    async def list_devices(self) -> list[Device]:
        """All devices; waits while drivers are still being asked."""
        await self._searched.wait()
        return [*(self._describe(found) for found in self._found.values()), *self._servers.shown()]

    @handles(idempotent=True)
    async def show(self, message: ShowDevice) -> Device:
        """One device by name."""
        await self._searched.wait()
        if message.name in self._servers:
            return self._servers.show(message.name)
        return self._describe(await self._find(message.name))

    @handles(idempotent=True)
    async def served(self, message: ListServed) -> list[Served]:
        """Which models devices answer with by themselves; waits while these are asked for the first time."""
        await self._searched.wait()
        return await self._servers.served(message.name)

    @streams(credit=16)
    async def generate(self, message: AskModel) -> AsyncIterator[Generated]:
        """One answer of a model that devices serve, by the first of them that gives it; for services only.

        A server that fails before anything was given is followed by another one. Users ask inference, which keeps their
        accounts.
        """
        calling_service()
        await self._searched.wait()
        async with aclosing(self._servers.answer(message)) as pieces:
            async for piece in pieces:
                yield piece

    @handles(deadline=None)
    async def tune(self, message: Tune) -> Tuning | None:
        """Choose numbers of threads by short measurements, use them and keep them; None where there is no choice.

        Raises `Overloaded` while something else is computed there, or other processes are busy: they would be measured.
        """
        if not is_root():
            raise Denied("only root tunes devices")
        return await self._tune(await self._find(message.name), anyway=message.anyway)

    @handles(idempotent=True)
    async def tunings(self) -> list[Tuning]:
        """All that was chosen by measuring, and holds on this machine."""
        await self._searched.wait()
        return self._kept.all({name: _machine(found.device) for name, found in self._found.items()})

    @handles(idempotent=True)
    async def find_tuning(self, message: FindTuning) -> Tuning | None:
        """What was chosen for a subject on a device of this machine, None where nothing was."""
        found = await self._find(message.device)
        return self._kept.find(message.device, message.subject, _machine(found.device))

    @handles
    async def keep_tuning(self, message: KeepTuning) -> Tuning:
        """Keep what was chosen for a subject, for the next time."""
        if not is_root():
            raise Denied("only root keeps what was chosen")
        return await self._keep(await self._find(message.device), message)

    @streams
    async def export(self, message: Export) -> AsyncIterator[EntryPiece]:  # noqa: ARG002
        """What was chosen by measuring, on whatever machine."""
        only_root("exports what was measured")
        if text := self._kept.text():
            for piece in pieces_of(FILE, text):
                yield piece

    @streams(name="import", credit=AHEAD)
    async def take_in(self, message: Import, inputs: Inputs[EntryPiece]) -> AsyncIterator[Imported]:  # noqa: ARG002
        """Know what was measured elsewhere; it holds on the machine that it was measured on."""
        check_restoring(self)
        if (text := await read_entry(inputs, self.name, FILE, most=LARGEST)) is not None:
            check_text(text)
            await asyncio.to_thread(put_file, self.state_dir / FILE, text)
        yield Imported()

    @every(1.0)
    async def tune_idle(self) -> None:
        """Measure what was not measured yet, where nothing is computed."""
        for found in tuple(self._found.values()):
            if not found.needs_tuning or not self.settings.tune_after or not self._is_idle(found):
                continue
            found.needs_tuning = False  # whatever comes of it: once
            try:
                await self._tune(found)
            except Overloaded as error:
                self.log.debug("%s", error)
                found.needs_tuning, found.idle_since = True, None
                found.pause = min(LONGEST_PAUSE, 2 * max(found.pause, self.settings.tune_after))
            except Exception as error:  # noqa: BLE001 - a trial that a driver brings is no reason to lose its device
                failure = from_exception(error, service=self.name)
                self.log.warning("%s is not tuned: %s", found.device.facts.name, failure.message)

    @every(5.0)
    async def check(self) -> None:
        """Ask each device how it is, and tell of changes on `devices.<name>.<state>`."""
        for name, found in self._found.items():
            if found.look():
                state = found.state
                self.log.warning("device %s is %s%s", name, state, f": {found.why}" if found.why else "")
                self.publish(f"devices.{name}.{state}", name=name, state=state.value, why=found.why)

    async def _open(self, driver: str, kind: Driver) -> None:
        for device in await load_in_thread(kind.find, f"driver {driver}"):
            name = device.facts.name
            if name in self._found or name in self._servers:
                raise Invalid(f"there is a device '{name}' already")
            if isinstance(device, ModelServer):
                entered = await self._servers.enter(driver, device)
                self.log.info("%s: %s", name, device.facts.model)
                self.publish("devices.found", entered)
                continue
            await self.executors.add(device.executor())
            self._found[name] = found = Found(driver, device)
            await self._use_kept(found)
            self.log.info("%s: %s, %d cores", name, device.facts.model, device.facts.cores)
            self.publish("devices.found", self._describe(self._found[name]))

    async def _close(self, name: str) -> None:
        if not await self.executors.remove(name, timeout=CLOSE_TIMEOUT):
            self.log.warning("a compute thread of %s is still busy; it ends with the process", name)

    async def _find(self, name: str) -> Found:
        """A device by its name. Raises `NotFound`."""
        await self._searched.wait()
        found = self._found.get(name)
        if name in self._servers:
            raise PreconditionFailed(f"'{name}' runs no work of ours: there is nothing to measure or to choose")
        if found is None:
            here = ", ".join([*self._found, *(device.name for device in self._servers.shown())])
            raise NotFound(f"no device is named '{name}'", remedy=f"devices here: {here or 'none'}")
        return found

    async def _use_kept(self, found: Found) -> None:
        """Have as many threads as were chosen for this machine."""
        tuning = self._kept.find(found.device.facts.name, "", _machine(found.device))
        found.needs_tuning = tuning is None
        if tuning is None:
            return
        try:
            await self._use(found, tuning.chosen)
        except Exception as error:  # noqa: BLE001 - a driver that cannot is no reason to lose its devices
            failure = from_exception(error, service=self.name)
            self.log.warning("%s is used as it came: %s", found.device.facts.name, failure.message)

    async def _tune(self, found: Found, *, anyway: bool = False) -> Tuning | None:
        name = found.device.facts.name
        executor = self.executor(name)
        if found.tuning.locked():
            raise PreconditionFailed(f"{name} is being tuned", remedy="wait until that has ended")
        if not found.usable:
            raise PreconditionFailed(f"{name} is {found.state}: {found.why}")
        status = executor.status()
        if status.running or status.queued:
            raise Overloaded(
                f"{name} is at work: what was measured beside it would not hold without",
                remedy="tune it while nothing runs",
                retry_after=AGAIN,
            )
        async with found.tuning:
            self.publish("devices.tuning", name=name)
            cores = found.device.facts.cores
            executor.limit_cores(cores)
            began = {"spread": found.spread, "core_threads": status.core_threads}
            others = Others(cores)
            try:
                choice = await measure(found.device, executor, cores)
                if not others.quiet and not anyway:
                    raise beside_others(others.cores, cores, retry_after=AGAIN)
            except BaseException:
                await self._use(found, began)
                raise
            found.needs_tuning = False
            if choice is None:
                await self._use(found, began)
                return None
            await self._use(found, choice.chosen)
            self.log.info("%s: operations on %d cores, %d threads of one core", name, *choice.chosen.values())
            ask = KeepTuning(device=name, subject="", title=name, chosen=choice.chosen, measured=choice.measured)
            tuning = await self._keep(found, ask)
            self.publish("devices.tuned", tuning)
            return tuning

    async def _use(self, found: Found, chosen: dict[str, int]) -> None:
        """Have operations spread over so many cores, and so many threads of one core."""
        executor = self.executor(found.device.facts.name)
        cores = found.device.facts.cores
        found.spread = min(cores, max(1, chosen.get("spread", cores)))
        executor.limit_cores(min(cores, chosen.get("core_threads", cores)))
        await executor.finish(found.device.spread, found.spread)

    async def _keep(self, found: Found, ask: KeepTuning) -> Tuning:
        tuning = Tuning(
            device=ask.device,
            subject=ask.subject,
            title=ask.title,
            chosen=ask.chosen,
            measured=ask.measured,
            machine=_machine(found.device),
            at=time.time(),
        )
        try:
            await asyncio.to_thread(self._kept.put, tuning)
        except OSError as error:
            self.log.warning("what was chosen for %s holds until the node ends: %s", ask.title, error)
        return tuning

    def _is_idle(self, found: Found) -> bool:
        """Whether nothing was computed for a while, here or by others."""
        status, now = self.executor(found.device.facts.name).status(), self.clock.now()
        works = status.running or status.queued or status.finished != found.quanta or not found.others.quiet
        found.others.again()
        if works or found.idle_since is None:
            found.idle_since, found.quanta = now, status.finished
        idle: float = now - found.idle_since
        return idle >= float(max(found.pause, self.settings.tune_after))

    def _lose(self, driver: str, why: str) -> None:
        self._broken[driver] = why
        self.log.error("driver '%s' is broken: %s", driver, why)
        self.publish("devices.broken", driver=driver, why=why)

    def _describe(self, found: Found) -> Device:
        facts = found.device.facts
        status = self.executor(facts.name).status()
        return Device(
            name=facts.name,
            kind=facts.kind,
            driver=found.driver,
            model=facts.model,
            state=found.state,
            cores=facts.cores,
            threads=facts.threads,
            memory_bytes=facts.memory_bytes,
            memory_free_bytes=found.device.free_memory(),
            instruction_sets=facts.instruction_sets,
            dtypes=facts.dtypes,
            torch_device=facts.torch_device,
            queued=status.queued,
            running=status.running,
            quanta=status.finished,
            busy_seconds=status.busy_seconds,
            core_threads=status.core_threads,
            spread=found.spread,
            tuning=found.tuning.locked(),
            others_seconds=others_seconds(),
            machine_cores=machine_cores(),
            policy=status.policy,
            costs=ThreadCosts(create=status.t_c, schedule=status.t_s, end=status.t_f),
            why=found.why,
        )


def _configured(name: str, kind: type[Driver], section: dict[str, Any]) -> Driver:
    """A driver with its settings. Raises `Invalid` that names the key."""
    driver = kind()
    driver.settings = section_of(section, kind.Settings, ("services", "devices", "drivers", name))
    return driver


def _machine(device: DriverDevice) -> str:
    """What measurements hold for: on any other they are done again."""
    facts = device.facts
    try:
        torch = f"torch {version('torch')}"
    except PackageNotFoundError:
        torch = "without torch"
    return f"{facts.model}, {facts.cores} cores, {facts.memory_bytes >> 30} GiB, {torch}, microkernel {__version__}"
