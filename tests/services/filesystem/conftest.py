"""A node with a tree."""

from __future__ import annotations

import pytest
from tree_user import TreeUser

from microkernel.testing import TestKernel
from services.filesystem.service import Filesystem


@pytest.fixture
async def system():
    async with TestKernel(Filesystem) as system:
        yield system


@pytest.fixture
def root(system):
    return TreeUser(system)


@pytest.fixture
def ann(system):
    return TreeUser(system, "ann")


@pytest.fixture
def bob(system):
    return TreeUser(system, "bob")
