"""The containers of a manifest, each as a process of this machine: the same commands, other paths and ports."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from deploy.manifests import Container

from microkernel.wire.client import connect_sync
from microkernel.wire.sync_system import SyncSystem

__all__ = ["Process", "Processes", "healthcheck"]

HTTP, CLUSTER = 7070, 7071  # the ports in the containers
BELOW = range(20_000, 32_000)  # Linux gives those from 32,768 on
PATIENCE = 60.0  # seconds
WITHOUT = ("inference", "memory", "devices", "filesystem")
SLOW = """
import asyncio
from microkernel import Message, Service, handles
from microkernel.service import Placement

class Nap(Message):
    seconds: float

class Slow(Service):
    name = "slow"
    placement = Placement.NODE

    @handles
    async def nap(self, message: Nap) -> str:
        self.publish("slow.begun")
        await asyncio.sleep(message.seconds)
        return self.node
"""


class Process(NamedTuple):
    """A container that runs as a process."""

    container: Container
    process: subprocess.Popen[bytes]
    root: Path
    port: int  # of its gateway
    output: Path

    def answers(self, path: str) -> int:
        """The status of a request; 0 where nobody answers."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            link.request("GET", path, headers={"Host": f"10.1.2.3:{HTTP}"})  # as a kubelet asks
            return link.getresponse().status
        except OSError:
            return 0
        finally:
            link.close()

    def json(self, *arguments: str) -> Any:
        """What a command prints that is run in the container."""
        command = [sys.executable, "-m", "microkernel", *arguments, "--root", str(self.root), "--json"]
        done = subprocess.run(
            command, env=_environment(), capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def linked(self) -> SyncSystem:
        """A client of it, for `with`."""
        return connect_sync(root=self.root, reconnect=False)

    def stop(self) -> None:
        """As a container engine begins to."""
        self.process.send_signal(signal.SIGTERM)

    def said(self) -> str:
        return self.output.read_text()


class Processes:
    """All containers of a manifest; for `with`. Files of theirs are in `folder`."""

    def __init__(self, containers: list[Container], folder: Path) -> None:
        self._containers = containers
        self._folder = folder
        self.all: dict[str, Process] = {}

    def __enter__(self) -> Processes:
        secret, slow = self._folder / "secret", self._folder / "slow.py"
        secret.write_text(f"{secrets.token_hex(32)}\n")
        slow.write_text(SLOW)
        count = len(self._containers)
        ports = _free_ports(2 * count)
        http, cluster = ports[:count], ports[count:]
        places = {
            f"{container.address}:{CLUSTER}": f"127.0.0.1:{port}"
            for container, port in zip(self._containers, cluster, strict=True)
        }
        with contextlib.ExitStack() as stack:
            for container, own, door in zip(self._containers, http, cluster, strict=True):
                self._start(container, own, door, {**places, **self._files(container, places, secret)})
                stack.callback(self.all[container.name].process.kill)
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.all.values():
            each.process.kill()
            each.process.wait()

    def until_ready(self) -> None:
        """Return when every probe of every container is content."""
        for each in self.all.values():
            self.until(lambda each=each: all(each.answers(path) == 200 for path in each.container.probes))

    def until(self, seen: Callable[[], bool]) -> None:
        """Return when `seen()` is true."""
        end = time.monotonic() + PATIENCE
        while not seen():
            ended = [each for each in self.all.values() if each.process.poll() not in {None, 0}]
            assert not ended, ended[0].said()
            assert time.monotonic() < end, "\n".join(each.said() for each in self.all.values())
            time.sleep(0.05)

    def _files(self, container: Container, places: dict[str, str], secret: Path) -> dict[str, str]:
        """Where the container's files are here, by their paths there."""
        found = {path: str(secret) for path, file in container.files.items() if file is None}
        for path, file in container.files.items():
            if file is not None:
                here = self._folder / f"{container.name}{file.suffix}"
                here.write_text(_put(file.read_text(encoding="utf-8"), {**places, **found}))
                found[path] = str(here)
        return found

    def _start(self, container: Container, port: int, door: int, here: dict[str, str]) -> None:
        root, output = self._folder / container.name, self._folder / f"{container.name}.txt"
        program, *words = container.command
        assert program == "mk"
        words = [_put(word, here) for word in words]
        # What a machine has once, and three containers have three times; and nothing that takes long to come in.
        words += ["--root", str(root), "--port", str(port), "--set", f"services.cluster.port={door}"]
        words += [word for name in WITHOUT for word in ("--without", name)]
        words += ["--service", str(self._folder / "slow.py")]
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "microkernel", *words],
                env={**_environment(), **container.environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self.all[container.name] = Process(container, process, root, port, output)


def _put(text: str, here: dict[str, str]) -> str:
    for there, instead in here.items():
        text = re.sub(rf"(?<![\w.-]){re.escape(there)}(?![\w.-])", instead, text)
    return text


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MICROKERNEL_")}


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different, and none that the system gives to whoever dials."""
    found: list[int] = []
    for port in random.sample(BELOW, len(BELOW)):
        with contextlib.suppress(OSError), socket.create_server(("0.0.0.0", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no port is free")


def healthcheck(command: str, port: int) -> int:
    """The exit code of the image's own check, asked at another port."""
    program, *words = [_put(word, {f"127.0.0.1:{HTTP}": f"127.0.0.1:{port}"}) for word in json.loads(command)]
    assert program == "python", shlex.join(words)
    return subprocess.run([sys.executable, *words], check=False, stderr=subprocess.DEVNULL, timeout=PATIENCE).returncode
