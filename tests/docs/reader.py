"""Somebody who follows a page: boots its node, types its commands, runs its Python, and reads what comes back."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from docs.page import Block

__all__ = ["Node", "follow", "run"]


class Node:
    """A booted node, and a shell beside it."""

    def __init__(self, folder: Path, command: str) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MICROKERNEL_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MICROKERNEL_ROOT": str(self.state),
            "NO_COLOR": "1",
        }
        self.url = ""
        self.output: list[str] = []
        # The page's own command, but on a free port.
        self.process = subprocess.Popen(
            [*shlex.split(command), "--port", "0"],
            cwd=folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if line.startswith("address"):
                self.url = line.split()[1]
                return
        pytest.fail(f"the boot ended: {''.join(self.output)}")

    def shell(self, command: str) -> str:
        """What `command` writes, errors included, in order."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return done.stdout

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        try:
            assert self.process.wait(30) == 0
        finally:
            self.process.kill()
            self.process.stdout.close()


async def run(text: str, where: str, names: dict[str, Any]) -> None:
    """Run a block as Python's own asyncio console would: `await` may stand at the top."""
    code = compile(text, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    running = eval(code, names)
    if inspect.isawaitable(running):
        await running


def follow(node: Node, block: Block) -> None:
    """Run each command and compare what it says: `…` stands for anything, and columns may be wider."""
    for entry in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, expected = entry.partition("\n")
        said = node.shell(command)
        pattern = "\n".join(" *" + r"\s+".join(map(_wild, line.split())) + r"\s*" for line in expected.splitlines())
        assert re.fullmatch(pattern, said.rstrip("\n")), f"line {block.line}: {command} said:\n{said}"


def _wild(word: str) -> str:
    return ".*".join(map(re.escape, word.split("…")))
