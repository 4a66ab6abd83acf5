"""Real text that every machine has: the documentation of Python's own library."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

__all__ = ["KINDS", "texts_of"]

SHORTEST = 20  # characters


@cache
def texts_of(kind: str, count: int) -> list[str]:
    """So many texts of a kind, from all over the library; the same for the same Python."""
    return KINDS[kind](count)


def _paragraphs(count: int) -> list[str]:
    return _spread(list(dict.fromkeys(part for text in _documentation() for part in _parts(text))), count)


def _first_lines(count: int) -> list[str]:
    lines = (text.strip().partition("\n")[0] for text in _documentation())
    return _spread(list(dict.fromkeys(line for line in lines if len(line) >= SHORTEST)), count)


def _spread(found: list[str], count: int) -> list[str]:
    return [found[place * len(found) // count] for place in range(count)]


def _parts(text: str) -> Iterator[str]:
    return (part for part in (" ".join(each.split()) for each in text.split("\n\n")) if len(part) >= SHORTEST)


def _documentation() -> Iterator[str]:
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(file.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


KINDS: dict[str, Callable[[int], list[str]]] = {"paragraphs": _paragraphs, "lines": _first_lines}
"""Paragraphs, and first lines, which are a sentence each."""
