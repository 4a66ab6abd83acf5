"""Nodes on other systems' machines: each machine that a launcher has gets one, which is kept running.

Machines that come and go are followed. How a node is, only the cluster knows: one that its others have taken for dead
and that does not come back is ended and started anew, whatever the launcher's system thinks of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from microkernel.config import section_of
from microkernel.errors import Invalid, from_exception
from microkernel.launcher import Launcher, Machine, NodeStart
from microkernel.plugins import Plugin, discover_launchers
from microkernel.service import Service
from services.cluster.certificates.names import check_node
from services.cluster.kept_running import keep_running
from services.cluster.messages import Invitation, Invite

__all__ = ["LaunchedNodes"]

LOOK = 2.0  # seconds from one look at the machines and nodes to the next
LOST = 120.0  # seconds without it after which a node is started anew; one that only was away comes back by itself
TOKEN_LASTS = 900.0  # seconds: the system has to find a place for a node, and may install what it needs first
MOST_MACHINES = 1024  # of one launcher; the cluster's table of members has an end too


class LaunchedNodes:
    """All nodes of all launchers that are set."""

    def __init__(
        self,
        service: Service,
        sections: Mapping[str, dict[str, Any]],
        config: str,
        *,
        owner: str,
        is_there: Callable[[str], bool],
    ) -> None:
        """`config` is the nodes' configuration, as TOML; `is_there` says whether a node is a member."""
        self._service = service
        self._sections = sections
        self._config = config
        self._owner = owner
        self._is_there = is_there
        self._launchers: list[Launcher] = []
        self._ending = False

    def start(self) -> None:
        """Begin to start them; who wants to know when they are there looks at the members."""
        if self._sections:
            self._service.spawn(self._open(), name="launchers")

    async def stop(self) -> None:
        """End them."""
        self._ending = True
        ends = await asyncio.gather(*(launcher.close() for launcher in self._launchers), return_exceptions=True)
        for launcher, end in zip(self._launchers, ends, strict=True):
            if isinstance(end, Exception):
                self._service.log.warning("launcher '%s': %s", launcher.name, from_exception(end))

    async def _open(self) -> None:
        installed = {plugin.name: plugin for plugin in await discover_launchers(tuple(self._sections))}
        for name, section in self._sections.items():
            try:
                launcher = made(name, installed.get(name), section)
                await launcher.open(self._owner, self._service.state_dir / "launchers" / name)
            except Exception as error:  # noqa: BLE001 - one that cannot be used takes nothing else along
                self._service.log.warning("launcher '%s' cannot be used: %s", name, from_exception(error))
                continue
            self._launchers.append(launcher)
            self._service.spawn(self._follow(launcher), name=f"launcher {name}")

    async def _follow(self, launcher: Launcher) -> None:
        """Have a node on each machine there is."""
        kept: dict[str, asyncio.Task[None]] = {}
        trouble = ""
        while not self._ending:
            try:
                machines = {machine.name: machine for machine in await launcher.machines()}
            except Exception as error:  # noqa: BLE001 - as above; the nodes that run are let alone
                why = str(from_exception(error))
                if why != trouble:
                    self._service.log.warning("launcher '%s': %s", launcher.name, why)
                trouble = why
            else:
                trouble = ""
                self._keep(launcher, dict(list(machines.items())[:MOST_MACHINES]), kept)
            await asyncio.sleep(LOOK)

    def _keep(self, launcher: Launcher, machines: dict[str, Machine], kept: dict[str, asyncio.Task[None]]) -> None:
        for name, task in tuple(kept.items()):
            if task.done():  # its machine was gone, and may be there again
                del kept[name]
            elif name not in machines:
                task.cancel()
        for name in machines.keys() - kept.keys():
            node = f"{launcher.name}-{name}"
            try:
                check_node(node)
            except Invalid as error:
                self._service.log.warning("launcher '%s': %s", launcher.name, error)
                continue
            run = partial(self._run, launcher, name, node)
            keep = keep_running(self._service, f"node '{node}'", run, lambda: self._ending)
            kept[name] = self._service.spawn(keep, name=f"node {node}")

    async def _run(self, launcher: Launcher, machine: str, node: str) -> str:
        invitation: Invitation = await self._service.call("cluster.invite", Invite(expires_in=TOKEN_LASTS))
        start = NodeStart(node=node, join=invitation.url, token=invitation.token, config=self._config)
        running = asyncio.create_task(launcher.run(machine, start), name=f"run {node}")
        away, most = 0.0, TOKEN_LASTS
        try:
            while away < most:
                done, _ = await asyncio.wait({running}, timeout=LOOK)
                if done:
                    return running.result()
                if self._is_there(node):
                    away, most = 0.0, LOST
                else:
                    away += LOOK
            return f"for {most:g} s, the cluster has not heard of it"
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def made(name: str, plugin: Plugin | None, section: dict[str, Any]) -> Launcher:
    """A launcher with its settings. Raises `Invalid`."""
    if plugin is None or plugin.broken is not None:
        raise Invalid("no launcher of that name is installed" if plugin is None else str(plugin.broken))
    launcher: Launcher = plugin.kind()
    launcher.settings = section_of(section, plugin.kind.Settings, ("services", "cluster", "launchers", name))
    return launcher
