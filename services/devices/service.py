"""Finds drivers and their devices, starts their compute threads, and keeps an eye on their health."""

from __future__ import annotations

import asyncio

from microkernel.driver import Driver, DriverDevice
from microkernel.errors import NotFound, Unavailable
from microkernel.message import Message
from microkernel.plugins import discover_drivers, load_in_thread
from microkernel.service import Service, every, handles
from services.devices.messages import Device, DeviceState, ShowDevice, ThreadCosts

__all__ = ["Devices"]


CLOSE_TIMEOUT = 2.5  # seconds for a quantum that runs to end when the service stops


class DevicesSettings(Message):
    """`without` lists drivers not to use."""

    without: tuple[str, ...] = ()


class _Found:
    """A device with its driver's name and its present state."""

    def __init__(self, driver: str, device: DriverDevice) -> None:
        self.driver = driver
        self.device = device
        self.state = DeviceState.HEALTHY
        self.why = ""

    def look(self) -> bool:
        """Ask the device how it is; whether that has changed. A quarantined one stays so until the service restarts."""
        if self.state is DeviceState.QUARANTINED:
            return False
        before = self.state
        if lost := self.device.lost():
            self.state, self.why = DeviceState.QUARANTINED, lost
        elif fault := self.device.fault():
            self.state, self.why = DeviceState.SUSPECT, fault
        else:
            self.state, self.why = DeviceState.HEALTHY, ""
        return self.state is not before


class Devices(Service):
    """Which devices this node has, what they can do, and how they are."""

    name = "devices"
    Settings = DevicesSettings

    async def start(self) -> None:
        self._found: dict[str, _Found] = {}
        self._broken: dict[str, str] = {}
        self._searched = asyncio.Event()

    async def ready(self) -> None:
        for plugin in await discover_drivers(without=self.settings.without):
            if plugin.broken is not None:
                self._lose(plugin.name, plugin.broken)
                continue
            try:
                await self._open(plugin.name, plugin.kind())
            except Exception as error:  # noqa: BLE001 - one broken driver does not take the other devices along
                self._lose(plugin.name, f"{type(error).__name__}: {error}")
        self._searched.set()
        if not self._found:
            reasons = "; ".join(f"{name}: {why}" for name, why in self._broken.items()) or "no driver is installed"
            raise Unavailable(f"no device was found ({reasons})", remedy="see `mk doctor`")

    async def stop(self) -> None:
        await asyncio.gather(*(self._close(name) for name in self._found))

    @handles(name="list", idempotent=True)
    async def list_devices(self) -> list[Device]:
        """All devices; waits while drivers are still being asked."""
        await self._searched.wait()
        return [self._describe(found) for found in self._found.values()]

    @handles(idempotent=True)
    async def show(self, message: ShowDevice) -> Device:
        """One device by name."""
        await self._searched.wait()
        found = self._found.get(message.name)
        if found is None:
            raise NotFound(
                f"no device is named '{message.name}'",
                remedy=f"devices here: {', '.join(self._found) or 'none'}",
            )
        return self._describe(found)

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
            await self.executors.add(device.executor())
            self._found[name] = _Found(driver, device)
            self.log.info("%s: %s, %d cores", name, device.facts.model, device.facts.cores)
            self.publish("devices.found", self._describe(self._found[name]))

    async def _close(self, name: str) -> None:
        if not await self.executors.remove(name, timeout=CLOSE_TIMEOUT):
            self.log.warning("a compute thread of %s is still busy; it ends with the process", name)

    def _lose(self, driver: str, why: str) -> None:
        self._broken[driver] = why
        self.log.error("driver '%s' is broken: %s", driver, why)
        self.publish("devices.broken", driver=driver, why=why)

    def _describe(self, found: _Found) -> Device:
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
            policy=status.policy,
            costs=ThreadCosts(create=status.t_c, schedule=status.t_s, end=status.t_f),
            why=found.why,
        )
