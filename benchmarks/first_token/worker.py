"""An engine in a process of its own: lines of JSON in, lines of JSON out, times taken beside the engine.

An engine is a module with a class `Engine(model, cores, **options)` whose `generate(prompts, tokens)` takes lists of
token ids; it may take more by name. What it costs to come over the pipe is not in the times, but for the start's.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from benchmarks.first_token.contender import Answer, Broken, Late, Memory, Prompt
from benchmarks.first_token.memory import memory_of
from benchmarks.versions import package_versions

__all__ = ["Clock", "RunningWorker", "Worker", "note", "serve"]

PATIENCE = 600.0  # seconds for a start or an answer
TAIL = 2_000
NOTE = "note: "  # begins a line of the log that people are to know of
PROJECT = Path(__file__).resolve().parents[2]


class Worker:
    """A contender whose engine is the module `engine`; `packages` are modules that it needs to import."""

    def __init__(
        self,
        name: str,
        about: str,
        *,
        engine: str,
        model: Path,
        cores: int,
        packages: dict[str, str],
        log: Path,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.about = about
        self._packages = packages
        self._log = log
        self._arguments = [engine, str(model), str(cores), json.dumps(options or {})]

    @property
    def command(self) -> list[str]:
        """How its process is started."""
        return [sys.executable, "-m", "benchmarks.first_token.worker", *self._arguments]

    def versions(self) -> dict[str, str]:
        """Of the packages that it needs, by their names in the index."""
        return package_versions(*self._packages.values())

    def missing(self) -> str | None:
        """The packages that are not installed."""
        absent = [package for module, package in self._packages.items() if importlib.util.find_spec(module) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    def notes(self) -> list[str]:
        """What the engine said that people are to know."""
        if not self._log.exists():
            return []
        lines = self._log.read_text(errors="replace").splitlines()
        return [f"{self.name}: {line.removeprefix(NOTE)}" for line in lines if line.startswith(NOTE)]

    def start(self, prompt: Prompt) -> RunningWorker:
        """Start the process and have a token made."""
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                self.command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        running = RunningWorker(process, self._log)
        try:
            running.generate([prompt], 1)
        except BaseException:
            running.close()
            raise
        return running


class RunningWorker:
    """This side of the pipe."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    def generate(self, prompts: list[Prompt], tokens: int) -> list[Answer]:
        """Have the other side do it."""
        return self.ask(prompts, tokens)

    def ask(self, prompts: list[Prompt], tokens: int, **more: Any) -> list[Answer]:
        """The same, with what else the engine takes by name."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        question = {"prompts": [prompt.ids for prompt in prompts], "tokens": tokens, **more}
        try:
            self._process.stdin.write(msgspec.json.encode(question) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise Broken(f"its process ended:\n{self._tail()}") from error
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            raise Broken(f"no answer in {PATIENCE:.0f} s:\n{self._tail()}")
        line = self._process.stdout.readline()
        if not line:
            raise Broken(f"its process ended:\n{self._tail()}")
        answers = msgspec.json.decode(line, type=list[Answer])
        short = [answer.tokens for answer in answers if answer.tokens != tokens]
        if short:
            raise Broken(f"it made {short} tokens where {tokens} were asked")
        return answers

    def memory(self) -> Memory:
        """Of the engine's process."""
        return memory_of(self._process.pid)

    def close(self) -> None:
        """Close the pipe, which ends the other side."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-TAIL:]


def serve(engine: Any, questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the other side closes the pipe."""
    for line in questions:
        question = json.loads(line)
        answers.write(msgspec.json.encode(engine.generate(**question)) + b"\n")
        answers.flush()


def note(line: str) -> None:
    """Said by an engine: what people are to know beside its numbers."""
    print(f"{NOTE}{line}", file=sys.stderr, flush=True)


class Clock:
    """Takes the times of one call's streams: `note(stream)` at each token."""

    def __init__(self, prompts: list[list[int]]) -> None:
        self._lengths = [len(prompt) for prompt in prompts]
        self._times: list[list[float]] = [[] for _ in prompts]
        self._asked = [0.0] * len(prompts)
        self._began = time.perf_counter()

    def join(self, late: Late) -> int:
        """One more stream is asked now; returns its number."""
        self._lengths.append(len(late.prompt))
        self._times.append([])
        self._asked.append(time.perf_counter() - self._began)
        return len(self._times) - 1

    def is_due(self, late: Late) -> bool:
        """Whether each stream has as many tokens as `late` waits for."""
        return all(len(times) >= late.after for times in self._times)

    def note(self, stream: int) -> None:
        """A token of `stream` can be read now."""
        self._times[stream].append(time.perf_counter() - self._began)

    def answers(self) -> list[Answer]:
        """What has been noted."""
        return [
            Answer(length, len(times), times[0], times[-1], times, asked)
            for length, times, asked in zip(self._lengths, self._times, self._asked, strict=True)
        ]


def _main() -> None:
    module, model, cores, options = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints goes to the log
    engine = importlib.import_module(module).Engine(Path(model), int(cores), **json.loads(options))
    serve(engine, sys.stdin.buffer, answers)


if __name__ == "__main__":
    _main()
