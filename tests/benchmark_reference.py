"""What the reference says of the benchmarks."""

from __future__ import annotations

from pathlib import Path

__all__ = ["section_of"]

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "benchmarks.md"


def section_of(benchmark: str) -> str:
    """The section that is named after a benchmark."""
    return PAGE.read_text(encoding="utf-8").partition(f"## `{benchmark}`")[2].partition("\n## ")[0]
