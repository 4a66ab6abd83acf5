"""A node on a thread of its own, and file systems of fsspec that are linked to it."""

from __future__ import annotations

import fsspec
import fsspec.asyn
import pytest
from background_node import BackgroundNode

from services.filesystem.client.filesystem import TreeFileSystem
from services.filesystem.service import Filesystem


@pytest.fixture(scope="module")
def node():
    fsspec.asyn.get_loop()  # its thread stays for the whole process, and is not one that the node has left
    with BackgroundNode(Filesystem, filesystem={"quotas": {"ann": 50_000}}) as node:
        yield node
        TreeFileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def shared(node):
    fs = fsspec.filesystem("mk", **node.options, skip_instance_cache=True)
    yield fs
    fs.close()


@pytest.fixture
def fs(shared):
    yield shared
    for path in ("/data/t", "/tmp/t", "/home/ann"):
        if shared.exists(path):
            shared.rm(path, recursive=True)


@pytest.fixture
def ann(node):
    token = node.call("kernel.token_create", user="ann", allow=["filesystem.*"]).token
    fs = fsspec.filesystem("mk", address=node.url, token=token, skip_instance_cache=True)
    yield fs
    fs.close()


@pytest.fixture
def environment(node, monkeypatch):
    """As `mk` finds the node of this machine."""
    monkeypatch.setenv("MICROKERNEL_URL", node.url)
    monkeypatch.setenv("MICROKERNEL_TOKEN", node.token)
    yield
    for fs in list(TreeFileSystem._cache.values()):
        fs.close()
    TreeFileSystem.clear_instance_cache()
