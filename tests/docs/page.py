"""Pages of the documentation and the fenced blocks in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

__all__ = ["DOCS", "PAGES", "ROOT", "Block", "blocks", "name_of", "pages_with", "shell_commands"]

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts),
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
]
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A fenced block; `line` is where it begins, `mark` is in the comment before it."""

    language: str
    text: str
    mark: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(each["language"], each["text"], each["mark"] or "", text.count("\n", 0, each.start("text")) + 1)
        for each in BLOCK.finditer(text)
    ]


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT))


def pages_with(*languages: str) -> list[Any]:
    """Parameters for tests of all pages that have a block in one of `languages`."""
    found = [page for page in PAGES if any(block.language in languages for block in blocks(page))]
    return [pytest.param(page, id=name_of(page)) for page in found]


def shell_commands(block: Block) -> list[str]:
    """The commands of a block; in a console those behind a `$`."""
    joined = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        return [line.removeprefix("$ ") for line in joined if line.startswith("$ ")]
    return [line for line in joined if line.strip() and not line.startswith("#")]
