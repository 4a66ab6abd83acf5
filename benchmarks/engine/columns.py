"""Cells set in columns."""

from __future__ import annotations

from collections.abc import Container, Sequence

__all__ = ["columns"]


def columns(lines: Sequence[Sequence[str]], *, left: Container[int]) -> str:
    """All lines with columns of the same width; those in `left` are flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
