"""An object in a process of its own: questions as lines of JSON to its methods, answers as lines of JSON from them.

    python -m benchmarks.messages.process MODULE:CLASS [ADDRESS]

The object has `async def start(self)` and `async def stop(self)`; its loop runs between the questions too, so a server
serves while nobody asks it anything. What it prints goes to the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import uvloop

__all__ = ["Broken", "Process", "serve", "split_address"]

PATIENCE = 120.0  # seconds for an answer: so long only where something is wrong
FAREWELL = 15.0  # seconds for a process to end by itself
TAIL = 2_000  # characters of a log that an error shows
LONGEST = 1 << 20  # bytes of a question
PROCESSOR_TIME = "processor_time"  # a question that every process answers, whatever it holds
PROJECT = Path(__file__).resolve().parents[2]


class Broken(Exception):
    """A contender could not do what it was asked; it takes no further part in its line."""


class Question(msgspec.Struct, frozen=True):
    """A method and its arguments."""

    method: str
    options: dict[str, Any] = {}


class Answer(msgspec.Struct, frozen=True):
    """What a method returned, or how it failed."""

    value: Any = None
    error: str | None = None


class Process:
    """The end of whoever asks; it waits for each answer."""

    def __init__(self, target: str, log: Path, address: str = "") -> None:
        """Start the process; returns when its object has. Raises `Broken`."""
        self._target = target
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command(target, address),
                cwd=PROJECT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
            )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def command(target: str, address: str = "") -> list[str]:
        """How it is started."""
        return [sys.executable, "-m", "benchmarks.messages.process", target, *([address] if address else [])]

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, method: str, **options: Any) -> Any:
        """What the object's `method` returns. Raises `Broken`, also for whatever the method raises."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(Question(method, options)) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise Broken(self._ended()) from error
        return self._answer()

    def processor_time(self) -> float:
        """Seconds that all its threads have had a processor. Raises `Broken`."""
        return float(self.ask(PROCESSOR_TIME))

    def close(self) -> None:
        """Close the pipe, which ends the other side, and wait for it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            self._process.stdin.close()
        try:
            self._process.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            raise Broken(f"{self._target} gave no answer in {PATIENCE:.0f} s:\n{self._tail()}")
        line = self._process.stdout.readline()
        if not line:
            raise Broken(self._ended())
        answer = msgspec.json.decode(line, type=Answer)
        if answer.error is not None:
            raise Broken(f"{self._target}: {answer.error}")
        return answer.value

    def _ended(self) -> str:
        return f"the process of {self._target} ended:\n{self._tail()}"

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-TAIL:]


def split_address(address: str) -> tuple[str, str]:
    """The URL and the token of a server's address; the token is empty where it needs none."""
    url, _, token = address.partition(" ")
    return url, token


async def serve(subject: Any, questions: asyncio.StreamReader, answers: BinaryIO) -> None:
    """Start `subject`, answer until the other side closes the pipe, and stop it."""
    if not await _tell(answers, subject.start()):
        return
    try:
        while line := await questions.readline():
            question = msgspec.json.decode(line, type=Question)
            if question.method == PROCESSOR_TIME:
                await _tell(answers, _processor_time())
            else:
                await _tell(answers, getattr(subject, question.method)(**question.options))
    finally:
        await subject.stop()


async def _processor_time() -> float:
    return time.process_time()


async def _tell(answers: BinaryIO, work: Any) -> bool:
    """Do it and say how it went; False if it failed."""
    try:
        answer = Answer(await work)
    except Exception as error:  # noqa: BLE001 - whoever asked is told, and the log has the rest
        traceback.print_exc()
        first: BaseException = error
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        answer = Answer(error=f"{type(first).__name__}: {first}")
    answers.write(msgspec.json.encode(answer) + b"\n")
    answers.flush()
    return answer.error is None


async def _main(target: str, *address: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks closes the pipe, also when a terminal interrupts both
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints goes to the log
    reader = asyncio.StreamReader(limit=LONGEST)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    module, _, name = target.partition(":")
    await serve(getattr(importlib.import_module(module), name)(*address), reader, answers)


if __name__ == "__main__":
    uvloop.run(_main(*sys.argv[1:]))
