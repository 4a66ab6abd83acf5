"""The kernels' builds for all tests of this folder: those that came with the installation, or made once a run."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from microkernel.errors import PreconditionFailed
from services.inference.native import recipe
from services.inference.native.build import open_kernels
from services.inference.native.library import Kernels


def variants() -> list:
    """What this machine can run: the best and AVX2 in every run, those between in the nightly one."""
    here = recipe.runnable()
    usual = {*here[:1], "avx2"}
    return [pytest.param(name, marks=() if name in usual else pytest.mark.slow) for name in here]


def pytest_generate_tests(metafunc) -> None:
    if "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", variants(), scope="session")


@pytest.fixture(scope="session")
def builds(tmp_path_factory) -> Path:
    """One folder for all processes that run tests side by side."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "kernels"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def opened(builds):
    """Opens the kernels of a variant, the best without one."""
    known: dict[str | None, Kernels] = {}

    def of(variant: str | None = None) -> Kernels:
        if variant not in known:
            try:
                with (builds / "lock").open("w") as lock:  # who comes second waits, and need not build
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    known[variant] = open_kernels(builds, variant)
            except PreconditionFailed as error:
                pytest.skip(error.message)
        return known[variant]

    return of


@pytest.fixture
def kernels(opened) -> Kernels:
    return opened()
