"""What is on a node of Ray's: an actor that has one node of ours as its child.

A process of its own, and not a thread of Ray's worker: the node is the same program as everywhere, its signals, its
garbage collector and its compute threads are its own, and a worker that fails and a node that fails are told apart. It
ends when its standard input does, so with the actor, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
import tomllib
from pathlib import Path

from microkernel.launcher import NodeStart
from microkernel.message import Message

__all__ = ["Agent", "Placed"]

# What Ray and this machine's own nodes use; a node needs none of it, and Ray's token is not for it.
FOREIGN = ("RAY_", "MICROKERNEL_")
LOOK = 5.0  # seconds
STOPPING = 2.0  # seconds that a node has to end in good order; who waits for that has three
TAIL = 2048  # bytes of the output among which the last words are looked for


class Placed(Message, kw_only=True):
    """How a node is started here. It listens at `host`, where it is reached from other machines, and on `port`."""

    start: NodeStart
    folder: str
    models: str
    host: str | None = None
    port: int = 0


class Agent:
    """Ray makes it, with a loop of its own. Not heard of for `orphan_seconds`, it ends."""

    def __init__(self, orphan_seconds: float) -> None:
        self._orphan_seconds = orphan_seconds
        self._tended = time.monotonic()
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._folder = Path()
        self._over = threading.Event()  # nobody can be forgotten any more: for tests, which outlive their agents
        threading.Thread(target=self._watch, name="orphaned", daemon=True).start()

    async def tend(self) -> None:
        """The launcher is there."""
        self._tended = time.monotonic()

    async def run(self, placed: Placed) -> str:
        """How the node has ended, when it has. It is started once; whoever asks later waits with the others."""
        async with self._starting:
            if self._process is None:
                self._process = await self._start(placed)
        code = await self._process.wait()
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return f"{how}: {await asyncio.to_thread(_last_words, self._folder / 'output.log')}"

    async def stop(self) -> None:
        """Have the node end, in good order as far as that takes no longer than `STOPPING`."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOPPING):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _watch(self) -> None:
        while time.monotonic() - self._tended < self._orphan_seconds:
            if self._over.wait(LOOK):
                return
        # An actor ends itself in a method only, and nobody is there to call one. The node sees its input end.
        os._exit(0)

    async def _start(self, placed: Placed) -> asyncio.subprocess.Process:
        self._folder, output, words = await asyncio.to_thread(_prepared, placed)
        environment = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
        environment["MICROKERNEL_JOIN_TOKEN"] = placed.start.token  # a command line is everybody's to read
        try:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "microkernel", *words),
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        finally:
            os.close(output)


def _prepared(placed: Placed) -> tuple[Path, int, list[str]]:
    """The node's folder with its configuration, the file that it prints to, and the arguments of its boot."""
    start, folder = placed.start, Path(placed.folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(_created(folder / "node.toml"), "w", encoding="utf-8") as config:
        config.write(start.config)
    words = ["boot", "--root", str(folder), "--config", str(folder / "node.toml"), "--node", start.node]
    words += ["--join", start.join, "--until-eof"]
    if placed.host is not None:
        host = f"[{placed.host}]" if ":" in placed.host else placed.host
        words += ["--cluster", f"{host}:{placed.port}"]
    if "root" not in tomllib.loads(start.config).get("services", {}).get("models", {}):
        words += ["--set", f'services.models.root="{Path(placed.models).expanduser()}"']
    return folder, _created(folder / "output.log"), words


def _created(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)


def _last_words(path: Path) -> str:
    try:
        lines = path.read_bytes()[-TAIL:].decode(errors="replace").splitlines()
    except OSError as error:
        return f"its output cannot be read: {error.strerror}"
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it has said nothing")
