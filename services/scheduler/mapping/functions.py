"""Functions by name: `module:function`. Nothing is pickled, and a name is looked up where the function runs."""

from __future__ import annotations

import importlib
import operator
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from microkernel.errors import Denied, Invalid, NotFound

__all__ = ["check_allowed", "find"]

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_BUILT_IN: dict[str, Callable[..., Any]] = {"sum": operator.add, "max": max, "min": min}


def find(name: str) -> Callable[..., Any]:
    """The function of that name; imports its module. `sum`, `max` and `min` of two need no module.

    Raises `Invalid` for what is no name or no function, `NotFound` where there is none.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    _check_name(name)
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # code of the user's: it can raise whatever code can
        raise NotFound(
            f"module '{module}' cannot be imported: {type(error).__name__}: {error}", field="function"
        ) from error
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise NotFound(f"module '{module}' has no function '{path}'", field="function")
    return found  # type: ignore[no-any-return] # it is callable


def check_allowed(name: str, patterns: tuple[str, ...]) -> None:
    """Raise `Denied` for a function that none of `patterns` allows; to import a module is to run it."""
    if name in _BUILT_IN:
        return
    _check_name(name)
    if not any(fnmatchcase(name, pattern) for pattern in patterns):
        raise Denied(
            f"only root runs '{name}' here",
            remedy="have it allowed in the node's configuration: services.scheduler.functions",
        )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise Invalid(f"'{name}' is not module:function", field="function")
