"""Tries a grammar in a process of its own, before the node compiles it.

Grammars come from strangers, and the library that compiles them has been seen to overflow its stack over chains of
references and to compute for minutes over products of patterns. Neither can be caught in the node; a child can be lost.
It is started with the first grammar and stays, so that a grammar costs milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from microkernel.errors import Unavailable

__all__ = ["LIMITS", "Trial"]

PROGRAM = Path(__file__).with_name("trial_program.py")
CPU_SECONDS = 2.0  # that a grammar may take to compile and to walk; real schemas take milliseconds
MEMORY = 1 << 30  # bytes of address space
WALKS, STEPS = 4, 32  # ways through the grammar, and tokens of each
SLOWEST = 0.05  # seconds of one step: the whole batch waits for it
PATIENCE = 30.0  # seconds until the child counts as hung, on a machine that gives it no time
LONGEST_LINE = 1 << 16
# Of the library, for compiling and for each step. A step of 25,000 units takes about 2 ms.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 25_000,
    "step_max_items": 10_000,
    "max_lexer_states": 50_000,
    "verbose_errors": False,
}


class Trial:
    """The child, as its parent sees it. For one thread; `check_open` and `close` are for any."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False

    def run(self, grammar: str) -> str | None:
        """What is wrong with `grammar`, in the library's text; None if nothing is. Raises `Unavailable`."""
        if self._child is None or self._child.poll() is not None:
            self._start()
        try:
            return self._ask(grammar)
        except (OSError, EOFError):
            self.bury()
            self.check_open()
            return "it takes too much time or memory to compile"

    def check_open(self) -> None:
        """Raise `Unavailable` once closed."""
        if self._closed:
            raise Unavailable("the model is being unloaded", retry_after=1.0, may_have_run=False)

    def close(self) -> None:
        """End the child; what it is asked now is answered as if it had died over it."""
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()

    def bury(self) -> None:
        """Take back what the child had; a new one can be started."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what it never read
                    pipe.close()

    def _start(self) -> None:
        self.bury()
        self.check_open()
        self._child = subprocess.Popen(  # noqa: S603 - our own program, and no shell
            [sys.executable, "-I", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if not name.startswith("MICROKERNEL_")},
            start_new_session=True,
        )
        terms = {
            "limits": LIMITS,
            "memory": MEMORY,
            "seconds": CPU_SECONDS,
            "walks": WALKS,
            "steps": STEPS,
            "slowest": SLOWEST,
        }
        try:
            self._ask(terms)
        except (OSError, EOFError) as error:
            self.bury()
            raise Unavailable("the program that tries grammars does not start", retry_after=1.0) from error

    def _ask(self, question: object) -> str | None:
        child = self._child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(msgspec.json.encode(question) + b"\n")
        child.stdin.flush()
        deadline = time.monotonic() + PATIENCE
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                chunk = os.read(child.stdout.fileno(), LONGEST_LINE) if ready else b""
                if not chunk or len(line) > LONGEST_LINE:
                    raise EOFError
                line += chunk
        return msgspec.json.decode(line, type=str | None)
