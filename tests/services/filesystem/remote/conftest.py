"""Stores of other kinds, beside the node with a tree."""

from __future__ import annotations

from pathlib import Path

import fsspec
import fsspec.asyn
import pytest
from web_server import WebServer

fsspec.asyn.get_loop()  # its thread is there once for the process, and not left by a test


@pytest.fixture
async def server():
    async with WebServer() as server:
        yield server


@pytest.fixture
def memory():
    """fsspec's store in memory, which a process has one of."""
    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder to mount, with a secret beside it."""
    (tmp_path / "secret").write_text("the secret")
    root = tmp_path / "root"
    root.mkdir()
    return root
