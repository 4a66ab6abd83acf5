"""Devices through the kernel."""

from __future__ import annotations

import threading

import pytest

from microkernel.errors import NotFound, Unavailable
from microkernel.testing import TestKernel
from services.devices.service import Devices


async def test_the_cpu_is_found_with_what_it_can_do_and_runs_work_on_its_own_thread():
    async with TestKernel(Devices) as system:
        [device] = await system.call("devices.list")
        assert (device.name, device.kind, device.state) == ("cpu0", "cpu", "healthy")
        assert device.cores >= 1
        assert 0 < device.memory_free_bytes <= device.memory_bytes
        assert "float32" in device.dtypes
        name = await system.kernel.executors.get("cpu0").run(lambda: threading.current_thread().name)
        assert name == "cpu0.0"
        assert (await system.call("devices.show", name="cpu0")).quanta == 1
        with pytest.raises(NotFound, match="devices here: cpu0"):
            await system.call("devices.show", name="cuda9")


async def test_without_any_device_the_service_says_why():
    async with TestKernel(Devices, settings={"devices": {"without": ["cpu"]}}, wait_ready=False) as system:
        await system.until("devices", "restarting", "quarantined")
        with pytest.raises(Unavailable, match="no device was found"):
            raise system.kernel._slots["devices"].failure


async def test_a_driver_that_cannot_be_loaded_is_named_and_the_others_serve(monkeypatch):
    import services.devices.service as module
    from microkernel.plugins import Plugin

    discover = module.discover_drivers

    async def with_a_broken_one(**options):
        return [*await discover(**options), Plugin("warp", "elsewhere", broken="ImportError: no warp core")]

    monkeypatch.setattr(module, "discover_drivers", with_a_broken_one)
    async with TestKernel(Devices, wait_ready=False) as system, system.subscribe("devices.broken") as broken:
        assert [device.name for device in await system.call("devices.list")] == ["cpu0"]
        assert (await anext(broken)).body["why"] == "ImportError: no warp core"
