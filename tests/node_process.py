"""A node in a process of its own, as a user boots it, and commands in others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
POINT = "[microkernel.services]\nbackup = services.backup.service:Backup\n"


def environment(folder: Path) -> dict[str, str]:
    """What the processes see: nothing of the caller's node, and the functions that tests map."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MICROKERNEL_")}
    paths = [str(TESTS.parent), str(TESTS), *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]
    if not any(point.name == "backup" for point in entry_points(group="microkernel.services")):
        # As pyproject.toml says, which an environment that was made before has not.
        made = folder / "site" / "backup_entry_point-0.dist-info"
        made.mkdir(parents=True, exist_ok=True)
        (made / "METADATA").write_text("Metadata-Version: 2.1\nName: backup-entry-point\nVersion: 0\n")
        (made / "entry_points.txt").write_text(POINT)
        paths.append(str(made.parent))
    return {**inherited, "HOME": str(folder), "NO_COLOR": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": ":".join(paths)}


def mk(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that is waited for."""
    with command(folder, *arguments) as process:
        stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


@contextmanager
def command(folder: Path, *arguments: str, stdout: Any = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """A command that runs, and does not outlive the block; `stdout` may be an open file."""
    process = subprocess.Popen(
        [sys.executable, "-m", "microkernel", *arguments],
        env=environment(folder),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        process.wait()


@contextmanager
def booted(folder: Path, root: Path, *arguments: str, config: str = "") -> Iterator[dict[str, Any]]:
    """What a node says when it is ready; it is told to stop at the end."""
    (folder / "config.toml").write_text(config)
    given = ["--config", str(folder / "config.toml"), "--root", str(root), "--port", "0", "--json", *arguments]
    with command(folder, "boot", *given) as process:
        for line in process.stdout:
            said = json.loads(line)
            if said["event"] == "ready":
                break
        else:
            pytest.fail(f"the boot ended: {process.stderr.read()}")
        yield {**said, "process": process}
        process.terminate()
        process.communicate()
