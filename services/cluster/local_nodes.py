"""Worker nodes on this machine: real processes with real links, started with this node and ended with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from functools import partial
from pathlib import Path

from microkernel.service import Service
from services.cluster.kept_running import keep_running
from services.cluster.messages import Invitation, Invite

__all__ = ["LocalNodes"]

TOKEN = "MICROKERNEL_JOIN_TOKEN"  # noqa: S105 - the name of a variable
GRACE = 3.0  # seconds that they have to end in good order; a service's stop has little more
OWN = (TOKEN, "MICROKERNEL_TOKEN", "MICROKERNEL_ROOT", "MICROKERNEL_URL")  # variables that are this node's


class LocalNodes:
    """So many workers, each kept running. What it prints is in a file of its state folder."""

    def __init__(self, service: Service, count: int, arguments: tuple[str, ...]) -> None:
        self._service = service
        self._names = [f"{service.node}-{number}" for number in range(1, count + 1)]
        self._arguments = arguments
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._ending = False

    def start(self) -> None:
        """Begin to start them, all at once; who wants to know when they are there looks at the members."""
        for name in self._names:
            kept = keep_running(self._service, f"worker '{name}'", partial(self._run, name), lambda: self._ending)
            self._service.spawn(kept, name=f"worker {name}")

    async def stop(self) -> None:
        """End them; returns when they are gone."""
        self._ending = True
        running = list(self._running.values())
        for process in running:
            _signal(process, signal.SIGTERM)
        ends = [asyncio.create_task(process.wait(), name="worker ends") for process in running]
        if ends:
            _, late = await asyncio.wait(ends, timeout=GRACE)
            for process in running:
                if process.returncode is None:
                    _signal(process, signal.SIGKILL)
            if late:
                await asyncio.wait(late)

    async def _run(self, name: str) -> str:
        invitation: Invitation = await self._service.call("cluster.invite", Invite(expires_in=600.0))
        folder = self._folder(name)
        words = ["boot", "--root", str(folder), "--node", name, "--join", invitation.url, "--until-eof"]
        environment = {key: value for key, value in os.environ.items() if key not in OWN}
        environment[TOKEN] = invitation.token
        output = await asyncio.to_thread(_open, folder / "output.log")
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "microkernel", *words, *self._arguments),
                stdin=asyncio.subprocess.PIPE,  # whose end is ours: it ends with this process, however that ends
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        finally:
            os.close(output)
        self._running[name] = process
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                _signal(process, signal.SIGKILL)
                await process.wait()
            del self._running[name]
        return f"{_how(code)}; its last words are in {folder / 'output.log'}"

    def _folder(self, name: str) -> Path:
        return self._service.state_dir / "workers" / name


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
