"""The fork server of a node: started when the first job is, ended with the service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys

from microkernel.errors import Unavailable
from services.training.agent.forks import Forks

__all__ = ["ForkServer"]

LEAVE = 0.5  # seconds to end by itself once its line is closed; it has nothing to lose
WIDTH = 2000  # characters of a line of its output that are logged
PROGRAM = "services.training.worker.processes"
BOOTSTRAP = "import importlib, sys; name, *sys.path[:] = sys.argv[1:]; importlib.import_module(name).main()"
# Threads that wait do not spin: others compute on the same cores. Two processes whose threads spin made both 2 to 11
# times slower; without it one alone loses 2 to 5 %.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
OWN_MACHINE = {"GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0"}  # gloo listens where it is told to
# A place to meet that closes is how those hear who wait there: torch would print its own stack for each.
QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
SECRETS = ("MICROKERNEL_", "RAY_")

log = logging.getLogger("microkernel.training")


class ForkServer:
    """The process, and what it has forked."""

    def __init__(self, process: asyncio.subprocess.Process, forks: Forks) -> None:
        self.forks = forks
        self._process = process
        self._listening = asyncio.create_task(self._listen(), name="output of training")

    @classmethod
    async def start(cls, program: str = PROGRAM) -> ForkServer:
        """Start it; it imports what it needs while it is asked for the first child. Raises `Unavailable`.

        `program` is a module whose `main` serves; another one than ours is for tests.
        """
        ours, theirs = socket.socketpair()
        environment = {key: value for key, value in os.environ.items() if not key.startswith(SECRETS)}
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-c", BOOTSTRAP, program, *sys.path),
                    stdin=theirs.fileno(),
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    env=environment | PASSIVE | OWN_MACHINE | QUIET,
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            raise Unavailable(f"training cannot start a process: {error.strerror}", retry_after=5.0) from error
        return cls(process, Forks(ours))

    @property
    def is_there(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    async def close(self) -> None:
        """End it, and all that it has forked."""
        await self.forks.close()
        try:
            async with asyncio.timeout(LEAVE):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await self._listening

    async def _listen(self) -> None:
        """What its processes print is the node's to log."""
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readuntil()
            except asyncio.IncompleteReadError as rest:
                line = rest.partial
            except asyncio.LimitOverrunError as long:
                line = await self._process.stdout.read(long.consumed)
            if not line:
                return
            text = line[:WIDTH].decode(errors="replace").rstrip()
            if text:
                log.warning("a training process: %s", text)
