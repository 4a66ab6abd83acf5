"""Every asynchronous test here runs on asyncio's own loop and on uvloop: each has its own code for TLS."""

from __future__ import annotations

import asyncio

import pytest
import uvloop
from certified import Cluster


def pytest_asyncio_loop_factories(config, item):
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def cluster(tmp_path) -> Cluster:
    return Cluster(tmp_path)
