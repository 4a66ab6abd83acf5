"""Which device a model is put on, and what of the machine's memory it gets beside."""

from __future__ import annotations

from collections.abc import Sequence

from microkernel.errors import Unavailable
from microkernel.message import convert
from microkernel.service import Service
from services.devices.messages import Device, DeviceState

__all__ = ["AUTO", "candidates", "devices_for", "has_own_memory", "usable"]

AUTO = "auto"
OWN_MEMORY = frozenset({"cuda", "xpu"})  # torch's kinds of device; a Mac's GPU shares the machine's


async def devices_for(service: Service, wanted: str) -> list[Device]:
    """Where a model may go, the best first, and one at least; `wanted` is a device's name, or "auto".

    Raises `Unavailable` where nothing can be computed there.
    """
    if wanted == AUTO:
        return candidates(convert(await service.call("devices.list"), list[Device]))
    return [usable(convert(await service.call("devices.show", name=wanted), Device))]


def candidates(devices: Sequence[Device]) -> list[Device]:
    """Where a model may go, to be tried in this order: accelerators, the most free memory first, and then CPUs.

    Raises `Unavailable` where no device is healthy.
    """
    ours = [device for device in devices if not device.answers]
    healthy = [device for device in ours if device.state is DeviceState.HEALTHY]
    if not healthy:
        states = ", ".join(f"{device.name} is {device.state}: {device.why}" for device in ours)
        raise Unavailable(f"no device is healthy ({states})", remedy="see `mk devices`")
    return sorted(healthy, key=lambda device: (device.kind == "cpu", -device.memory_free_bytes))


def usable(device: Device) -> Device:
    """`device`, which was asked for by name. Raises `Unavailable` for one on which nothing can be computed."""
    if device.answers:
        raise Unavailable(f"device '{device.name}' takes no models: it has its own", remedy="ask for one of those")
    if device.state in {DeviceState.QUARANTINED, DeviceState.GONE}:
        raise Unavailable(f"device '{device.name}' is {device.state}: {device.why}", remedy="boot the node again")
    return device


def has_own_memory(device: Device) -> bool:
    """Whether the machine's memory is another tier below the device's, and not the same memory."""
    return device.torch_device.partition(":")[0] in OWN_MEMORY
