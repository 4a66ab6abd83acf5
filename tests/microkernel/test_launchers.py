"""Launchers are loaded where they are set, and nowhere else."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from microkernel import plugins
from microkernel.plugins import LAUNCHERS, discover_launchers


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("ray", "drivers.ray.launcher:RayLauncher", LAUNCHERS),
        EntryPoint("gone", "drivers.gone:Gone", LAUNCHERS),
        EntryPoint("other", "drivers.cpu.driver:CpuDriver", LAUNCHERS),
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda *, group: points if group == LAUNCHERS else [])


@pytest.mark.usefixtures("installed")
async def test_only_those_that_are_named_are_loaded() -> None:
    assert [each.name for each in await discover_launchers(["ray"])] == ["ray"]
    assert await discover_launchers([]) == []


@pytest.mark.usefixtures("installed")
async def test_one_that_cannot_be_loaded_or_is_none_is_broken_with_its_reason() -> None:
    gone, other = await discover_launchers(["gone", "other"])
    assert gone.broken is not None
    assert "ModuleNotFoundError" in gone.broken
    assert other.broken == "drivers.cpu.driver:CpuDriver is not a Launcher"
