"""Ours as users meet it: a node booted in a process of its own, asked over HTTP or over its websocket.

Over HTTP a chat is sent to `/v1/chat/completions` and its events are read; template and tokenizer are at work. The
websocket carries the same conversation to `inference.chat`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.first_token.contender import Answer, Broken, Memory, Prompt
from benchmarks.first_token.memory import memory_of
from benchmarks.versions import package_versions
from microkernel.errors import MicrokernelError, Unavailable
from microkernel.message import convert
from microkernel.wire.client import System, connect
from services.inference.messages import Piece

__all__ = ["Node"]

PATIENCE = 600.0  # seconds for a start or an answer: so long only where something is wrong
RETRY = 0.02
CONFIG = "benchmark.toml"
# Nothing is guessed, as in the peers; and nobody tunes itself while it is another one's turn to be measured.
SETTINGS = """\
[services.devices]
tune_after = 0.0

[services.inference]
speculation = "off"
tune_after = 0.0
"""
TAIL = 2_000  # characters of a node's log that an error shows


class Node:
    """The whole system. `root` is kept from start to start, as a user's is, and empty at the first.

    `service` is a Python file with one more service to boot.
    """

    def __init__(self, model: Path, root: Path, *, door: str = "http", service: Path | None = None) -> None:
        self.name = "microkernel" if door == "http" else f"microkernel, {door}"
        self.about = {
            "http": "a node that does not guess ahead, as the peers do not, and otherwise has its default settings; "
            "chats over HTTP as a stream of events, client on this machine",
            "websocket": "the same node, asked over its websocket",
        }[door]
        self._model = model
        self._root = root
        self._door = door
        self._service = service

    @property
    def command(self) -> list[str]:
        """How the node is booted."""
        boot = ["-m", "microkernel", "boot", "--root", str(self._root), "--port", "0", "--model", str(self._model)]
        boot += ["--config", str(self._root / CONFIG)]
        return [sys.executable, *boot, *(["--service", str(self._service)] if self._service else [])]

    def versions(self) -> dict[str, str]:
        """Of what the node computes with."""
        return package_versions("microkernel", "torch")

    def missing(self) -> str | None:
        """It is what this is about: it is there."""
        return None

    def start(self, prompt: Prompt) -> RunningNode:
        """Boot, and ask as soon as it listens."""
        self._root.mkdir(parents=True, exist_ok=True)
        (self._root / "node.json").unlink(missing_ok=True)
        (self._root / CONFIG).write_text(SETTINGS, encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MICROKERNEL_")}
        log = self._root / "benchmark.log"
        with log.open("w") as output:
            process = subprocess.Popen(self.command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        running = RunningNode(process, self._root, log, self._door)
        try:
            running.wait_for_first_token(prompt)
        except BaseException:
            running.close()
            raise
        return running


class RunningNode:
    """A node that answers, and the loop that its client runs on."""

    def __init__(self, process: subprocess.Popen[bytes], root: Path, log: Path, door: str) -> None:
        self._process = process
        self._root = root
        self._log = log
        self._ask = _DOORS[door]
        self._runner = asyncio.Runner(loop_factory=_loop_factory())

    def wait_for_first_token(self, prompt: Prompt) -> None:
        """Returns with the first token of the first answer that the node gives."""
        deadline = time.monotonic() + PATIENCE
        while not (self._root / "node.json").exists():
            self._look(deadline)
        while True:
            try:
                self.generate([prompt], 1)
            except _NotYet:
                self._look(deadline)
            else:
                return

    def generate(self, prompts: list[Prompt], tokens: int) -> list[Answer]:
        """All prompts as requests at the same moment."""
        return self._runner.run(self._ask(self._root, prompts, tokens))

    def memory(self) -> Memory:
        """Of the node; the client is in the benchmark's own process."""
        return memory_of(self._process.pid)

    def close(self) -> None:
        """Tell the node to stop as a terminal would."""
        self._runner.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _look(self, deadline: float) -> None:
        if self._process.poll() is not None:
            raise Broken(f"the node ended with code {self._process.returncode}:\n{self._log.read_text()[-TAIL:]}")
        if time.monotonic() > deadline:
            raise Broken(f"the node was not ready after {PATIENCE:.0f} s:\n{self._log.read_text()[-TAIL:]}")
        time.sleep(RETRY)


class _NotYet(Broken):
    """The node is there, and cannot answer at this moment."""


async def _ask_http(root: Path, prompts: list[Prompt], tokens: int) -> list[Answer]:
    """Each prompt on a connection of its own; opening it is in the times."""
    url = json.loads((root / "node.json").read_bytes())["url"] + "/v1/chat/completions"
    headers = {"Authorization": f"Bearer {(root / 'token').read_text().strip()}"}
    patience = aiohttp.ClientTimeout(total=PATIENCE)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector, timeout=patience) as session:
        asked = time.perf_counter()
        return await asyncio.gather(*(_chat_http(session, url, prompt, tokens, asked) for prompt in prompts))


async def _chat_http(session: aiohttp.ClientSession, url: str, prompt: Prompt, tokens: int, asked: float) -> Answer:
    body = {
        "messages": prompt.messages,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    lines: list[tuple[float, bytes]] = []
    try:
        async with session.post(url, json=body) as response:
            if response.status == 503:
                raise _NotYet(await response.text())
            if response.status != 200:
                raise Broken(f"HTTP {response.status}: {await response.text()}")
            async for line in response.content:
                # Parsed later, when nobody waits for a token.
                lines.append((time.perf_counter() - asked, line))  # noqa: PERF401 - the moment is what matters
    except aiohttp.ClientConnectorError as error:
        raise _NotYet(str(error)) from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Broken(f"the connection broke: {error!r}") from error
    return _answer_of(lines, prompt)


def _answer_of(lines: list[tuple[float, bytes]], prompt: Prompt) -> Answer:
    """When text came, and how many tokens the node says it was; the end of an answer comes with its last token."""
    times: list[float] = []
    usage: dict[str, int] = {}
    for moment, line in lines:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise Broken(f"the answer ended with {event['error']}")
        usage = event.get("usage") or usage
        if any(choice["delta"].get("content") or choice["finish_reason"] for choice in event["choices"]):
            times.append(moment)
    if not usage or not times:
        raise Broken("the answer broke off")
    return _checked(prompt, usage["prompt_tokens"], usage["completion_tokens"], times)


async def _ask_websocket(root: Path, prompts: list[Prompt], tokens: int) -> list[Answer]:
    """All prompts over one link, which is open before the clock runs: a link is made to be kept."""
    node = json.loads((root / "node.json").read_bytes())
    try:
        async with connect(node["url"], (root / "token").read_text().strip()) as system:
            asked = time.perf_counter()
            return await asyncio.gather(*(_chat_websocket(system, prompt, tokens, asked) for prompt in prompts))
    except Unavailable as error:
        raise _NotYet(str(error)) from error
    except MicrokernelError as error:
        raise Broken(str(error)) from error


async def _chat_websocket(system: System, prompt: Prompt, tokens: int, asked: float) -> Answer:
    items: list[tuple[float, Any]] = []
    ask = system.stream("inference.chat", messages=prompt.messages, max_tokens=tokens, temperature=0.0)
    async with ask as stream:
        async for item in stream:
            items.append((time.perf_counter() - asked, item))  # noqa: PERF401 - as above
    pieces = [(moment, convert(item, Piece)) for moment, item in items]
    times = [moment for moment, piece in pieces if piece.text or piece.finish_reason]
    usage = pieces[-1][1].usage if pieces else None
    if usage is None:
        raise Broken("the answer broke off")
    return _checked(prompt, usage.prompt_tokens, usage.completion_tokens, times)


def _checked(prompt: Prompt, read: int, made: int, times: list[float]) -> Answer:
    if read != len(prompt.ids):
        raise Broken(f"the node read {read} tokens, and the others are given {len(prompt.ids)}")
    return Answer(read, made, times[0], times[-1])


_DOORS = {"http": _ask_http, "websocket": _ask_websocket}


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop
