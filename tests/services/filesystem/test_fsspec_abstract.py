"""fsspec's own tests of an implementation, over a websocket to a node."""

from __future__ import annotations

import fsspec
import fsspec.asyn
import pytest
from background_node import BackgroundNode
from fsspec.tests import abstract

from services.filesystem.service import Filesystem


@pytest.fixture(scope="module")
def tree():
    fsspec.asyn.get_loop()  # its thread stays for the whole process, and is not one that the node has left
    with BackgroundNode(Filesystem) as node:
        fs = fsspec.filesystem("mk", **node.options, skip_instance_cache=True)
        yield fs
        fs.close()


class TreeFixtures(abstract.AbstractFixtures):
    """Where the suite's files are."""

    @pytest.fixture
    def fs(self, tree):
        return tree

    @pytest.fixture
    def fs_join(self):
        return lambda *names: "/".join(names)

    @pytest.fixture
    def fs_path(self, fs):
        fs.makedirs("/data/suite", exist_ok=True)
        return "/data/suite"


class TestCopy(abstract.AbstractCopyTests, TreeFixtures):
    pass


class TestGet(abstract.AbstractGetTests, TreeFixtures):
    pass


class TestPut(abstract.AbstractPutTests, TreeFixtures):
    pass


class TestOpen(abstract.AbstractOpenTests, TreeFixtures):
    pass


class TestPipe(abstract.AbstractPipeTests, TreeFixtures):
    pass
