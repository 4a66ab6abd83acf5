"""A script in a process of its own, that has nothing to complain of."""

from __future__ import annotations

import os
import subprocess
import sys


def run(script: str, **environment: str) -> str:
    """What a script says; it has nothing to complain of."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


REGISTER = """
import fsspec, os, sys
from services.filesystem.client.filesystem import TreeFileSystem
fsspec.register_implementation("mk", TreeFileSystem, clobber=True)
"""
