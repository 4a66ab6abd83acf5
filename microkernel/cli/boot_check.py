"""`mk boot --check`: everything that a boot needs is looked at, nothing is started."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microkernel.cli.checks import Check, check_folder, check_port, check_token, failed, show
from microkernel.cli.node import root_of, running_node
from microkernel.cli.output import size, wants_json
from microkernel.config import Config, section_of, settings_of
from microkernel.errors import MicrokernelError, PreconditionFailed
from microkernel.root import Root

if TYPE_CHECKING:
    from microkernel.plugins import Plugin

__all__ = ["check", "check_model"]

GGUF_MAGIC = b"GGUF"


def check(args: argparse.Namespace) -> int:
    """Print what was found; 0 if a boot has nothing against it."""
    from microkernel.cli.boot import configured, service_files

    try:
        config = configured(args)
    except MicrokernelError as error:
        return show([failed("config", error)], as_json=wants_json(args))
    root = root_of(args)
    checks = [Check(name="config", ok=True, detail=config.source or "defaults")]
    plugins = asyncio.run(_discover(service_files(args, config), config))
    settings: dict[str, Any] = {}
    checks += [_check_plugin(plugin, {each.name for each in plugins}) for plugin in plugins]
    checks += _check_settings(config, plugins, settings)
    drivers = getattr(settings.get("devices"), "drivers", {})
    checks += asyncio.run(_check_drivers(drivers))
    checks += asyncio.run(_check_launchers(getattr(settings.get("cluster"), "launchers", {})))
    checks += [*check_folder(root), *_check_lock(root), check_token(root)]
    gateway = settings.get("gateway")
    if gateway is not None:
        checks.append(check_port(str(getattr(gateway, "host", "127.0.0.1")), int(getattr(gateway, "port", 7070))))
    model = getattr(settings.get("inference"), "model", None)
    if model and not (drivers and "/" in str(model) and not Path(str(model)).exists()):
        checks.append(check_model(str(model), root))
    elif model:
        checks.append(Check(name="model", ok=True, detail=f"{model} (is looked up at the boot)"))
    return show(checks, as_json=wants_json(args))


def check_model(ref: str, root: Path) -> Check:
    """Whether `ref` can be loaded as far as can be told without fetching or loading it."""
    path = Path(ref).expanduser()
    if path.is_file():
        return _check_gguf(path)
    if path.is_dir():
        complete = (path / "config.json").is_file()
        return Check(
            name="model",
            ok=complete,
            detail=f"{path}" if complete else f"{path} has no config.json",
            remedy="see --model",
        )
    if "/" in ref and ":" not in ref:
        return Check(name="model", ok=False, detail=f"there is no file {ref}", remedy="name a file that is there")
    if not root.is_dir() or running_node(root) is not None:
        return Check(name="model", ok=True, detail=f"{ref} (is looked up at the boot)")
    try:
        model = asyncio.run(_find_model(ref, root))
    except MicrokernelError as error:
        if ":" in ref:
            return Check(name="model", ok=True, detail=f"{ref} is not stored yet: the boot fetches it")
        return failed("model", error, remedy="mk models list")
    return Check(name="model", ok=True, detail=f"{ref} is stored ({size(model.bytes)})")


async def _find_model(ref: str, root: Path) -> Any:
    from microkernel.cli.models import the_models_service

    async with the_models_service(root) as system:
        return await system.call("models.find", ref=ref, deadline=None)


def _check_gguf(path: Path) -> Check:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        return failed("model", error)
    if magic != GGUF_MAGIC:
        detail = f"{path} is no GGUF file: it begins with {magic!r}"
        return Check(name="model", ok=False, detail=detail, remedy="fetch it again, or name another one")
    return Check(name="model", ok=True, detail=f"{path} ({size(path.stat().st_size)})")


async def _discover(files: list[Path], config: Config) -> list[Plugin]:
    from microkernel.plugins import discover_services

    return await discover_services(files, without=config.disable)


def _check_plugin(plugin: Plugin, names: set[str]) -> Check:
    name = f"service {plugin.name}"
    if plugin.broken is not None:
        return Check(
            name=name, ok=False, detail=plugin.broken, remedy=f"mend {plugin.source}, or disable it in the config"
        )
    missing = [need for need in plugin.kind.needs if need not in names]
    if missing:
        return Check(name=name, ok=False, detail=f"needs '{missing[0]}', which is not installed")
    return Check(name=name, ok=True, detail=plugin.source)


def _check_settings(config: Config, plugins: list[Plugin], settings: dict[str, Any]) -> list[Check]:
    """Fills `settings` with those that are right; tells of the others."""
    wrong = []
    known = {plugin.name for plugin in plugins}
    for name in dict.fromkeys((*config.services, *config.isolation)):
        if name not in known and name not in config.disable:
            detail = f"{config.source or 'settings'}: no service is named '{name}'"
            wrong.append(
                Check(name="settings", ok=False, detail=detail, remedy=f"services here: {', '.join(sorted(known))}")
            )
    for plugin in plugins:
        if plugin.kind is None:
            continue
        try:
            settings[plugin.name] = settings_of(config, plugin.name, plugin.kind.Settings)
        except MicrokernelError as error:
            wrong.append(failed("settings", error))
    return wrong or [Check(name="settings", ok=True, detail=f"of {len(settings)} services")]


async def _check_drivers(sections: dict[str, dict[str, Any]]) -> list[Check]:
    """Whether drivers that are set can be; those that are not are asked for nothing here."""
    from microkernel.driver import Driver
    from microkernel.plugins import discover_drivers, load_in_thread

    if not sections:
        return []
    installed = {plugin.name: plugin for plugin in await discover_drivers()}
    checks = []
    for name, section in sections.items():
        title, plugin = f"driver {name}", installed.get(name)
        if plugin is None or plugin.broken is not None:
            why = "is not installed" if plugin is None else plugin.broken
            checks.append(Check(name=title, ok=False, detail=str(why), remedy=f"drivers here: {', '.join(installed)}"))
            continue
        driver: Driver = plugin.kind()
        try:
            driver.settings = section_of(section, plugin.kind.Settings, ("services", "devices", "drivers", name))
            devices = await load_in_thread(driver.find, title)
        except MicrokernelError as error:
            checks.append(failed(title, error))
        else:
            found = ", ".join(device.facts.name for device in devices) or "no device"
            checks.append(Check(name=title, ok=True, detail=found))
    return checks


async def _check_launchers(sections: dict[str, dict[str, Any]]) -> list[Check]:
    """Whether launchers that are set can be used; their systems are not asked."""
    from microkernel.plugins import discover_launchers

    installed = {plugin.name: plugin for plugin in await discover_launchers(tuple(sections))}
    checks = []
    for name, section in sections.items():
        title, plugin = f"launcher {name}", installed.get(name)
        if plugin is None or plugin.broken is not None:
            why = "is not installed" if plugin is None else plugin.broken
            checks.append(Check(name=title, ok=False, detail=str(why)))
            continue
        launcher = plugin.kind()
        try:
            launcher.settings = section_of(section, plugin.kind.Settings, ("services", "cluster", "launchers", name))
            with tempfile.TemporaryDirectory(prefix="microkernel-") as folder:
                await launcher.open("check", Path(folder))
                await launcher.close()
        except MicrokernelError as error:
            checks.append(failed(title, error))
        else:
            checks.append(Check(name=title, ok=True, detail=plugin.source))
    return checks


def _check_lock(root: Path) -> list[Check]:
    """Whether another node has the folder; nothing is made for it."""
    if not Root(root).is_taken():
        return []
    node = running_node(root)
    where = f" at {node['url']} (pid {node['pid']})" if node else ""
    error = PreconditionFailed(f"a node runs on {root}{where}", remedy="stop it, or choose another folder with --root")
    return [failed("node", error)]
