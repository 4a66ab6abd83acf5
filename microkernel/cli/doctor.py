"""`mk doctor`: checks this machine, the state folder and the node, and says how to mend what is wrong."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from microkernel.cli.checks import (
    Check,
    check_folder,
    check_imports,
    check_packages,
    check_port,
    check_python,
    check_token,
    failed,
    show,
)
from microkernel.cli.node import Asked, find, root_of
from microkernel.cli.output import Commands, duration, plain, size, wants_json
from microkernel.errors import MicrokernelError, Unavailable

__all__ = ["add", "check_device", "check_tuning", "run"]

MODULES = ("torch", "numpy", "aiohttp", "tokenizers", "safetensors", "gguf")
HEALTHY = frozenset({"ready", "running"})


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser(
        "doctor", help="check everything, say how to mend it", description=__doc__, parents=parents, allow_abbrev=False
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check all; exit code 1 if anything is wrong."""
    root = root_of(args)
    checks = [check_python(), *check_imports(*MODULES), check_packages(), *check_folder(root), check_token(root)]
    checks += asyncio.run(_check_node(args))
    return show(checks, as_json=wants_json(args))


async def _check_node(args: argparse.Namespace) -> list[Check]:
    from microkernel.wire.client import connect

    try:
        where = find(args)
        async with connect(where.url, root=where.root) as system:
            services = plain(await system.call("kernel.services", deadline=10.0))
            checks = [await _check_link(system), *(_check_service(service) for service in services)]
            names = {service["name"] for service in services}
            if "devices" in names:
                checks += await _check_devices(system)
            if "models" in names:
                checks += await _check_models(system)
            return checks
    except Unavailable as error:
        return [failed("node", error, remedy="start one with: mk boot"), check_port("127.0.0.1", 7070)]
    except MicrokernelError as error:
        return [failed("node", error)]


async def _check_link(system: Asked) -> Check:
    began = time.perf_counter()
    status = plain(await system.call("kernel.status", deadline=10.0))
    took = 1000 * (time.perf_counter() - began)
    detail = f"{status['node']} version {status['version']}, pid {status['pid']}, a round trip takes {took:.1f} ms"
    if status["loop_lag_max_ms"]:
        detail += f", its loop was at most {status['loop_lag_max_ms']:.1f} ms late in the last minute"
    return Check(name="node", ok=True, detail=detail)


def _check_service(service: dict[str, Any]) -> Check:
    name, state = service["name"], service["state"]
    remedy = f"see `mk log --service {name}`, then `mk services restart {name}`"
    if state == "broken":
        remedy = f"mend {service['source']} and boot again"
    detail = f"{state}: {service['why']}" if service["why"] else state
    return Check(name=f"service {name}", ok=state in HEALTHY, detail=detail, remedy=remedy)


async def _check_devices(system: Asked) -> list[Check]:
    try:
        devices = plain(await system.call("devices.list"))
    except MicrokernelError as error:
        return [failed("devices", error)]
    return [*(check_device(device) for device in devices), *await _check_tunings(system)]


def check_device(device: dict[str, Any]) -> Check:
    """How a device is, as `devices.list` tells it."""
    has = f"{size(device['memory_free_bytes'])} of {size(device['memory_bytes'])} free"
    state = device["state"] + (f": {device['why']}" if device["why"] else "")
    remedy = "boot the node again; if it stays, look at the machine's own log"
    if device.get("answers"):
        count = len(device["models"])
        has = f"{count} model{'' if count == 1 else 's'}"
        remedy = "see whether it runs, and what its own log says; it is asked again by itself"
    return Check(
        name=f"device {device['name']}",
        ok=device["state"] == "healthy",
        detail=f"{state}, {device['model']}, {has}",
        remedy=remedy,
    )


async def _check_tunings(system: Asked) -> list[Check]:
    """What was chosen by measuring, and when; that nothing was yet, is no fault."""
    try:
        tunings = plain(await system.call("devices.tunings"))
    except MicrokernelError as error:
        return [failed("tuning", error)]
    if not tunings:
        return [Check(name="tuning", ok=True, detail="nothing was measured yet: mk bench tune")]
    return [check_tuning(tuning, time.time()) for tuning in tunings]


def check_tuning(tuning: dict[str, Any], now: float) -> Check:
    """What was chosen, as `devices.tunings` tells it."""
    chosen = ", ".join(f"{name} {number}" for name, number in tuning["chosen"].items())
    about = tuning["device"] + (f", {tuning['title']}" if tuning["subject"] else "")
    ago = duration(max(0.0, now - tuning["at"]))
    return Check(name="tuning", ok=True, detail=f"{about}: {chosen}; measured {ago} ago, again by mk bench tune")


async def _check_models(system: Asked) -> list[Check]:
    try:
        models = plain(await system.call("models.list"))
    except MicrokernelError as error:
        return [failed("models", error)]
    checks = []
    for each in models:
        name = f"model {each['name']}"
        try:
            await system.call("models.verify", ref=each["name"])
        except MicrokernelError as error:
            checks.append(failed(name, error, remedy=f"mk models pull {each['ref']}"))
        else:
            detail = f"{size(each['bytes'])}, every byte is as it was"
            checks.append(Check(name=name, ok=True, detail=detail))
    return checks
