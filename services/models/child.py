"""A program that fetches for us, in a process group of its own that ends with the pull."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import msgspec

from services.models.transfer import Transfer

__all__ = ["Exit", "run_child"]

POLL = 0.1  # seconds until a cancelled pull is noticed while the child says nothing
KEPT_LINES, KEPT_WIDTH = 100, 4000
LINE_LIMIT = 16 << 20  # bytes; a hub lists thousands of files in one line


class Exit(msgspec.Struct, frozen=True):
    """How a child ended: its exit code, and the last lines that it wrote to its standard error."""

    code: int
    errors: tuple[str, ...]


def run_child(
    command: Sequence[str],
    transfer: Transfer,
    *,
    folder: Path,
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
) -> Exit:
    """Run `command` in `folder` and hand each line of its standard output to `on_line`.

    Whatever ends this call, the child and its own children are gone afterwards: a cancelled pull, or an error that
    `on_line` raises. The child's standard input stays open as long as we live, so that it can tell.
    """
    errors: deque[str] = deque(maxlen=KEPT_LINES)
    child = subprocess.Popen(  # noqa: S603  # an argument list; its parts were validated, and no shell reads them
        command,
        cwd=folder,
        env=_environment(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert child.stdout is not None
        assert child.stderr is not None
        _read_lines({child.stdout: on_line, child.stderr: lambda line: errors.append(line[:KEPT_WIDTH])}, transfer)
        while child.poll() is None:
            transfer.pause(POLL / 10)
    finally:
        _end(child)
    return Exit(child.returncode, tuple(errors))


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """Ours with `more`, but for what is the node's own: a program that fetches has no use for its token."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MICROKERNEL_")} | dict(more)


def _read_lines(readers: Mapping[IO[bytes], Callable[[str], None]], transfer: Transfer) -> None:
    """Read until all pipes are closed."""
    rests = dict.fromkeys(readers, b"")
    with selectors.DefaultSelector() as selector:
        for pipe in readers:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            transfer.check()
            for key, _ in selector.select(POLL):
                pipe = next(pipe for pipe in readers if pipe is key.fileobj)
                chunk = os.read(pipe.fileno(), 1 << 16)
                if not chunk:
                    selector.unregister(pipe)
                *lines, rest = (rests[pipe] + chunk).split(b"\n")
                if rest and not chunk:
                    lines, rest = [*lines, rest], b""
                rests[pipe] = rest[-LINE_LIMIT:]
                for line in lines:
                    readers[pipe](line[:LINE_LIMIT].decode("utf-8", errors="replace").rstrip("\r"))


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the group: it has nothing to save, its files are temporary."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
