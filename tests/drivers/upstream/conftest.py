"""Nodes that ask other servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from microkernel.testing import TestKernel

Opener = Callable[..., AbstractAsyncContextManager[TestKernel]]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def asking(tiny: Path) -> Opener:
    """A node with a gateway and a tiny model of its own that asks these servers, once each was looked at."""
    from inference_node import SERVICES  # with torch

    from services.gateway.service import Gateway

    @asynccontextmanager
    async def made(*servers: dict[str, Any], **inference: Any) -> AsyncIterator[TestKernel]:
        settings = {
            "devices": {"drivers": {"upstream": {"servers": list(servers)}}},
            "inference": {"model": str(tiny), **inference},
            "gateway": {"port": 0, "drain_seconds": 0.0},
        }
        async with TestKernel(*SERVICES, Gateway, settings=settings) as system:
            await system.call("devices.served")
            yield system

    return made
