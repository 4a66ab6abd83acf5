"""The classes of a call twice over: as built with C, and their Python reference."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import types

import pytest

import microkernel
from microkernel.deadlines import Deadlines

__all__ = ["both", "breath", "gate_of", "in_c", "in_python", "needs_c"]


def build(*, pure: bool) -> types.SimpleNamespace:
    """The classes of a call, their modules imported anew with or without C."""
    names = {"run": "Method", "stream": "Stream", "gate": "Gate", "arrivals": "Arrivals"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MICROKERNEL_PURE", "1" if pure else "0")
        for name in names:
            patch.delitem(sys.modules, f"microkernel.{name}", raising=False)
            patch.delattr(microkernel, name, raising=False)
        modules = {name: importlib.import_module(f"microkernel.{name}") for name in names}
    return types.SimpleNamespace(**{kind: getattr(modules[name], kind) for name, kind in names.items()})


in_c, in_python = build(pure=False), build(pure=True)

needs_c = pytest.mark.skipif(
    in_c.Method.__module__ != "microkernel._run" or os.environ.get("MICROKERNEL_PURE") == "1",
    reason="there is no C module to compare with, or the reference was asked for",
)
both = pytest.mark.parametrize("built", [in_c, in_python], ids=["c", "python"])


def gate_of(built, handler, *, concurrency=4):
    deadlines = Deadlines(asyncio.get_running_loop())
    return built.Gate("x.y", handler, concurrency=concurrency, queue=4, deadlines=deadlines, waits={})


@types.coroutine
def breath(value=None):
    """One turn of whoever drives."""
    return (yield value)
