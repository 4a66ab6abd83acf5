"""Where services, drivers and launchers come from: installed entry points, and single files.

A plugin that cannot be loaded is named with its reason and stops nobody. Loading happens on a thread of its own: an
import that takes long, or never ends, holds up neither the loop nor the other plugins.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import re
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from enum import StrEnum
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from microkernel.balance import MOST_INSTANCES, Balance
from microkernel.dependencies import EVERYTHING
from microkernel.driver import Driver
from microkernel.errors import Invalid
from microkernel.launcher import Launcher
from microkernel.service import (
    MOST_REPLICAS,
    Isolation,
    Placement,
    Restart,
    Service,
    handlers_of,
    subscribers_of,
    timers_of,
)

__all__ = [
    "DRIVERS",
    "LAUNCHERS",
    "SERVICES",
    "Plugin",
    "checked",
    "discover_drivers",
    "discover_launchers",
    "discover_services",
    "load_file",
    "load_in_thread",
    "reloaded",
]

SERVICES = "microkernel.services"
DRIVERS = "microkernel.drivers"
LAUNCHERS = "microkernel.launchers"
IMPORT_TIMEOUT = 60.0  # seconds; torch alone takes several on a cold disk

T = TypeVar("T")

_WORDS: dict[str, type[StrEnum]] = {
    "restart_policy": Restart,
    "isolation": Isolation,
    "balance": Balance,
    "placement": Placement,
}
_NAME = re.compile(r"[A-Za-z0-9_-]+")  # of a service: part of addresses, subjects and paths


class Plugin(msgspec.Struct, frozen=True):
    """Something found. Exactly one of `kind` (the class) and `broken` (the reason) is set."""

    name: str
    source: str
    kind: Any = None
    broken: str | None = None


async def discover_services(files: Sequence[Path] = (), *, without: Sequence[str] = ()) -> list[Plugin]:
    """All installed services but those in `without`, and those in `files`."""
    found = await _discover(SERVICES, Service, without)
    for file in files:
        found += await load_file(file)
    return found


async def discover_drivers(*, without: Sequence[str] = ()) -> list[Plugin]:
    """All installed drivers but those in `without`."""
    return await _discover(DRIVERS, Driver, without)


async def discover_launchers(names: Sequence[str]) -> list[Plugin]:
    """Those installed launchers that are named; of the others nothing is imported."""
    others = [point.name for point in entry_points(group=LAUNCHERS) if point.name not in names]
    return await _discover(LAUNCHERS, Launcher, others)


async def load_file(path: Path) -> list[Plugin]:
    """The services that are defined in a Python file, those that are unusable as broken plugins.

    A file that cannot be imported or defines no service is one broken plugin, named after the file.
    """
    try:
        module = await load_in_thread(lambda: _import_file(path), f"import of {path}")
        kinds = [
            member
            for _, member in inspect.getmembers(module, inspect.isclass)
            if issubclass(member, Service) and member is not Service and member.__module__ == module.__name__
        ]
        if not kinds:
            raise Invalid(f"{path} defines no service", remedy="subclass microkernel.Service")
    except Exception as error:  # noqa: BLE001 - whatever a plugin raises, the system boots and names it
        return [Plugin(name=_safe(path.stem), source=str(path), broken=_reason(error, str(path)))]
    return [_plugin(kind, path.stem, str(path)) for kind in kinds]


async def reloaded(plugin: Plugin) -> Plugin:
    """The plugin as its file has it now; itself where it comes from no file."""
    path = Path(plugin.source)
    if path.suffix != ".py":
        return plugin
    found = await load_file(path)
    for fresh in found:
        if fresh.name == plugin.name:
            return fresh
    why = next((fresh.broken for fresh in found if fresh.broken), None) or f"{path} defines it no longer"
    return msgspec.structs.replace(plugin, kind=None, broken=why)


def checked(plugin: Plugin) -> Plugin:
    """`plugin` as it is if the kernel can work with it, else as a broken one with the reason and a name that can be."""
    if plugin.broken is not None:
        return msgspec.structs.replace(plugin, name=_safe(plugin.name))
    try:
        if not _NAME.fullmatch(plugin.name):
            raise Invalid(f"'{plugin.name}' is no name for a service", remedy="letters, digits, '-' and '_'")
        _check_service(plugin.kind)
    except Exception as error:  # noqa: BLE001 - reading a class runs code of the plugin's
        return Plugin(name=_safe(plugin.name), source=plugin.source, broken=_reason(error, plugin.source))
    return plugin


async def load_in_thread(load: Callable[[], T], what: str, *, timeout: float = IMPORT_TIMEOUT) -> T:
    """`load()` on a daemon thread: one that never ends keeps neither the loop nor the process. Raises `Invalid`."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type] # of the two, one is set

    def work() -> None:
        result: T | None = None
        failure: Exception | None = None
        try:
            result = load()
        except Exception as error:  # noqa: BLE001 - handed to whoever waits
            failure = error
        except BaseException as error:  # noqa: BLE001 - a module that calls sys.exit() does not end us
            failure = Invalid(f"{what} raised {type(error).__name__}")
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish, result, failure)

    thread = threading.Thread(target=work, name=what, daemon=True)
    thread.start()
    try:
        async with asyncio.timeout(timeout):
            loaded = await done
    except TimeoutError as error:
        raise Invalid(f"{what} did not end within {timeout:g} s") from error
    thread.join()  # to tell us was its last step
    return loaded


async def _discover(group: str, base: type[Any], without: Sequence[str]) -> list[Plugin]:
    points = [point for point in entry_points(group=group) if point.name not in without]

    async def load(point: Any) -> Plugin:
        try:
            kind = await load_in_thread(point.load, f"import of {point.value}")
            if not (inspect.isclass(kind) and issubclass(kind, base)):
                raise Invalid(f"{point.value} is not a {base.__name__}")
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises, the system boots and names it
            return Plugin(name=point.name, source=point.value, broken=_reason(error, point.value))
        return _plugin(kind, point.name, point.value)

    return list(await asyncio.gather(*(load(point) for point in points)))


def _plugin(kind: Any, name: str, source: str) -> Plugin:
    """What was found in a file or at an entry point, which name it where it does not name itself."""
    if not issubclass(kind, Service):
        return Plugin(name=kind.name or name, source=source, kind=kind)
    if kind.name == "":
        kind.name = _safe(name)
    if not isinstance(kind.name, str):
        return Plugin(name=_safe(name), source=source, broken=f"{kind.__name__}.name is not text: {kind.name!r}")
    return checked(Plugin(name=kind.name, source=source, kind=kind))


def _check_service(kind: Any) -> None:
    """Raises `Invalid` for what a service class may not say about itself."""
    for attribute in ("needs", "uses"):
        names = getattr(kind, attribute)
        if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
            raise Invalid(f"{attribute} is a tuple of names, not {names!r}")
        wrong = [name for name in names if not _NAME.fullmatch(name) and (attribute, name) != ("uses", EVERYTHING)]
        if wrong:
            raise Invalid(f"{attribute}: '{wrong[0]}' is no name of a service")
    for attribute, words in _WORDS.items():
        if getattr(kind, attribute) not in list(words):
            raise Invalid(f"{attribute} is {', '.join(words)}, not {getattr(kind, attribute)!r}")
    for attribute, least, most in (("instances", 1, MOST_INSTANCES), ("replicas", 0, MOST_REPLICAS)):
        number = getattr(kind, attribute)
        if type(number) is not int or not least <= number <= most:
            raise Invalid(f"{attribute} is a number from {least} to {most}, not {number!r}")
    if not (inspect.isclass(kind.Settings) and issubclass(kind.Settings, msgspec.Struct)):
        raise Invalid(f"Settings is a subclass of Message, not {kind.Settings!r}")
    for attribute in ("start_timeout", "drain_timeout"):
        if not isinstance(seconds := getattr(kind, attribute), int | float) or not seconds >= 0:
            raise Invalid(f"{attribute} is a number of seconds, not {seconds!r}")
    handlers_of(kind)
    subscribers_of(kind)
    timers_of(kind)


def _safe(name: str) -> str:
    """`name`, or the nearest to it that can be the name of a service."""
    return "-".join(_NAME.findall(name)) or "plugin"


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise Invalid(f"there is no file {path}")
    name = f"microkernel_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise Invalid(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations are resolved through it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _reason(error: Exception, source: str) -> str:
    """One line: what was raised, and where in the plugin."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == source]
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} (line {error.lineno})"
    where = f" (line {frames[-1].lineno})" if frames else ""
    sentence = str(error).partition("\n")[0]
    return (f"{sentence}" if isinstance(error, Invalid) else f"{type(error).__name__}: {sentence}") + where
