"""`mk boot`: starts a node, shows what it does while it does it, and runs until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from microkernel.cli import boot_cluster
from microkernel.cli.boot_display import BootDisplay, Booted, ServiceRow, make_display
from microkernel.cli.boot_progress import SUBJECTS, BootProgress
from microkernel.cli.logs import OneLine, quiet_logs
from microkernel.cli.node import root_of
from microkernel.cli.output import Commands, clean, plain, wants_json
from microkernel.config import Config, read_config
from microkernel.errors import Invalid, MicrokernelError

if TYPE_CHECKING:
    from microkernel.kernel import Kernel
    from microkernel.plugins import Plugin

__all__ = ["Node", "add", "configured", "run", "service_files"]

INTERRUPTED = 130
SAME_SIGNAL = 0.5  # seconds; make sends its children the SIGTERM that the whole group has got: that is asked once
LONGEST_LEAVE = 3600.0  # seconds; the cluster's own `drain_seconds` say how long
LEVELS = ("debug", "info", "warning", "error")


def add(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser("boot", help="start a node", description=__doc__, parents=parents, allow_abbrev=False)
    parser.add_argument("--host", help="listen on this address (default: 127.0.0.1)")
    parser.add_argument("--port", type=_port, help="listen on this port; 0 is any free one (default: 7070)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the TOML file with the settings")
    parser.add_argument("--model", metavar="REF", help="a name, pypi:PACKAGE, hf:ORG/REPO[:FILE], or a path")
    parser.add_argument(
        "--service",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file with services; repeatable",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="one setting, as in the TOML file; repeatable"
    )
    parser.add_argument(
        "--without", action="append", default=[], metavar="NAME", help="a service not to start; repeatable"
    )
    boot_cluster.add_arguments(parser)
    parser.add_argument("--check", action="store_true", help="check everything that a boot needs, start nothing")
    parser.add_argument("--log-level", choices=LEVELS, help="what the log keeps; debug shows tracebacks")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Boot, serve, shut down."""
    if args.check:
        from microkernel.cli.boot_check import check

        return check(args)
    config = configured(args)
    display = make_display(as_json=wants_json(args))
    with quiet_logs(config.log_level) as logs:
        node = Node(config, root_of(args), service_files(args, config), display, logs, until_eof=args.until_eof)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            code = runner.run(node.run())
            # The loop's own handlers are gone; a thread that hangs must not keep a second Ctrl-C from working.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: os._exit(INTERRUPTED))
        return code


def configured(args: argparse.Namespace) -> Config:
    """The configuration with what the command line says on top. Raises `Invalid`."""
    config = read_config(args.config, args.set)
    if args.without:
        config = msgspec.structs.replace(config, disable=tuple(dict.fromkeys((*config.disable, *args.without))))
    gateway = {key: value for key, value in (("host", args.host), ("port", args.port)) if value is not None}
    if gateway:
        config = config.with_settings({"gateway": gateway})
    if args.model is not None:
        ref = Path(args.model).expanduser()
        config = config.with_settings({"inference": {"model": str(ref.absolute()) if ref.exists() else args.model}})
    if args.log_level is not None:
        config = msgspec.structs.replace(config, log_level=args.log_level)
    if config.log_level not in LEVELS:
        where = config.source or "settings"
        raise Invalid(f"{where}: log_level: '{config.log_level}' is no level", remedy=", ".join(LEVELS))
    if config.log_level != Config().log_level and "monitor" not in {*config.services, *config.disable}:
        config = config.with_settings({"monitor": {"level": config.log_level}})
    return boot_cluster.clustered(args, config, root_of(args))


def service_files(args: argparse.Namespace, config: Config) -> list[Path]:
    """Python files with services: those of the config file, relative to it, and those of the command line."""
    folder = Path(config.source).parent if config.source else Path()
    return [folder / Path(plugin).expanduser() for plugin in config.plugins] + [
        file.expanduser() for file in args.service
    ]


class Node:
    """One boot: the kernel, its display, and what ends them."""

    def __init__(
        self,
        config: Config,
        root: Path,
        files: list[Path],
        display: BootDisplay,
        logs: OneLine,
        *,
        until_eof: bool = False,
    ) -> None:
        """With `until_eof`, the node ends when its standard input does."""
        self._until_eof = until_eof
        self._config = config
        self._root = root
        self._files = files
        self._display = display
        self._logs = logs
        self._began = time.monotonic()
        self._progress = BootProgress(lambda: time.monotonic() - self._began)
        self._stop = asyncio.Event()
        self._signal = ""
        self._told_at = 0.0
        self._booted = False
        self._url: str | None = None
        self._frozen: set[str] = set()  # subjects

    async def run(self) -> int:
        """Until a signal or `kernel.shutdown`; raises why the node cannot run."""
        self._catch_signals()
        if self._until_eof:
            await self._follow_input()
        with self._display:
            self._display.show(self._progress.stage("finding services", mark="busy"))
            kernel, plugins = None, asyncio.create_task(self._discover(), name="discover")
            try:
                await self._unless_stopped(plugins)
                if self._stop.is_set():
                    return 0
                kernel = self._make_kernel(plugins.result())
                await self._serve(kernel)
            finally:
                plugins.cancel()
                if kernel is not None:
                    await self._leave_cluster(kernel)
                    await kernel.shutdown(self._signal or "the node shuts down")
        return 0

    async def _serve(self, kernel: Kernel) -> None:
        stopped = asyncio.create_task(kernel.shutdown_requested.wait(), name="kernel.shutdown")
        stopped.add_done_callback(lambda _: self._stop.set())
        subscriptions = [kernel.port.subscribe(subject) for subject in SUBJECTS]
        followers = [
            asyncio.create_task(self._follow(kernel, subscription), name=f"show {subscription.pattern}")
            for subscription in subscriptions
        ]
        for follower in followers:
            follower.add_done_callback(_log_failure)
        booting = asyncio.create_task(self._boot(kernel), name="boot")
        try:
            await self._unless_stopped(booting)
            if booting.done():
                booting.result()
                await self._stop.wait()
        finally:
            for subscription in subscriptions:
                subscription.close()
            await _end(booting, stopped, *followers)

    async def _discover(self) -> list[Plugin]:
        from microkernel.plugins import discover_services

        return await discover_services(self._files, without=self._config.disable)

    def _make_kernel(self, plugins: list[Plugin]) -> Kernel:
        from microkernel.kernel import Kernel

        essential = {plugin.name for plugin in plugins if getattr(plugin.kind, "essential", False)}
        self._logs.essential = essential
        broken = [plugin.name for plugin in plugins if plugin.broken is not None]
        self._display.show(self._progress.found([plugin.name for plugin in plugins], broken, essential))
        return Kernel(self._config, self._root, plugins)

    async def _boot(self, kernel: Kernel) -> None:
        await kernel.boot()
        await self._note_address(kernel)
        self._display.show(self._progress.stage("services have started"))
        await kernel.wait_ready()
        rows = [
            ServiceRow(name=row["name"], state=row["state"], detail=row["why"] or row["summary"] or row["source"])
            for row in plain(await kernel.port.call("kernel.services"))
        ]
        self._booted = True
        self._display.finish(
            Booted(
                elapsed=time.monotonic() - self._began,
                url=self._url,
                token=kernel.token.token,
                token_path=str(kernel.root.token_path),
                services=rows,
                hints=self._hints(kernel),
            )
        )
        self._logs.tell_all()

    async def _follow(self, kernel: Kernel, events: Any) -> None:
        async for event in events:
            if event.subject == "gateway.listening":
                await self._note_address(kernel)
            if event.subject.endswith(".ready") and event.subject not in self._frozen:
                # What a service has brought in stays: a full collection that looked through it would hold the loop for
                # 80 ms, with torch. Once for each, as what is garbage at that moment stays as well.
                self._frozen.add(event.subject)
                gc.freeze()
            step = None if self._booted else self._progress.take(event)
            if step is not None:
                self._display.show(step)

    async def _note_address(self, kernel: Kernel) -> None:
        """Let commands find this node: from the moment it listens, long before a model is loaded."""
        if "gateway" not in kernel.router.registry:
            return  # another node of the cluster may have one
        try:
            address = plain(await kernel.port.call("gateway.address", deadline=5.0))
        except MicrokernelError:
            return  # no gateway, or it is just being restarted and will tell again
        if address["url"] != self._url:
            self._url = address["url"]
            kernel.root.write_node(address["url"], address.get("certificate"))

    async def _leave_cluster(self, kernel: Kernel) -> None:
        """Let what other nodes have running here end, and tell them; a second signal does not wait for that."""
        cluster = kernel.router.registry.get("cluster")
        if cluster is None or not cluster.state.answers:
            return  # a call would wait for it to start
        try:
            await kernel.port.call("cluster.leave", deadline=LONGEST_LEAVE)
        except MicrokernelError as error:
            logging.getLogger("microkernel.boot").info("left the cluster in a hurry: %s", error)

    async def _follow_input(self) -> None:
        """Stop when standard input ends."""

        class Input(asyncio.Protocol):
            def eof_received(_) -> bool:  # noqa: N805 - `self` is the node
                self._stop_for("its standard input has ended")
                return False

            def connection_lost(_, __: Exception | None) -> None:  # noqa: N805
                self._stop_for("its standard input has ended")

        await asyncio.get_running_loop().connect_read_pipe(Input, sys.stdin)

    def _stop_for(self, why: str) -> None:
        if not self._stop.is_set():
            self._signal = f"the node stops: {why}"
            self._stop.set()

    def _hints(self, kernel: Kernel) -> list[str]:
        root = kernel.root
        here = "" if root.path == root_of(argparse.Namespace()) else f" --root {shlex.quote(str(root.path))}"
        ask = """'{"messages": [{"role": "user", "content": "Hello"}]}'"""
        socket = (self._url or "").replace("http", "ws", 1)
        bearer = f'-H "Authorization: Bearer $(cat {shlex.quote(str(root.token_path))})"'
        return [
            f"mk chat{here}",
            f"curl {self._url}/v1/chat/completions {bearer} -H 'Content-Type: application/json' -d {ask}",
            f"the websocket: {socket}/mk, from Python: async with microkernel.connect() as system: …",
        ]

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()

        def stop(name: str) -> None:
            if self._stop.is_set():
                if loop.time() - self._told_at > SAME_SIGNAL:
                    os._exit(INTERRUPTED)  # asked twice: at once, whatever is open
                return
            self._told_at = loop.time()
            self._signal = f"the node was told to stop ({name})"
            self._stop.set()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup: it is to outlive its terminal
            loop.add_signal_handler(number, stop, number.name)

    async def _unless_stopped(self, task: asyncio.Task[Any]) -> None:
        """Until `task` is done or the node is told to stop."""
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(stop)


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logging.getLogger("microkernel.boot").error("%s: %s", task.get_name(), task.exception())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{clean(text)}' is no port: 0 to 65535")
    return int(text)
