"""What a page names is there: files, tests, links, and each decision with its parts."""

from __future__ import annotations

import re

import pytest
from docs.page import DOCS, PAGES, ROOT, name_of


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in PAGES])
def test_the_files_and_tests_that_a_page_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(
        r"`((?:microkernel|formats|services|drivers|tests|examples|benchmarks|docs)/[\w./-]*)`", text
    ):
        assert (ROOT / path).exists(), f"{page} names {path}"
    for test in re.findall(r"`(test_\w+)`", text):
        assert f"def {test}(" in all_tests(), f"{page} names {test}"


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md", "README.md"])
def test_the_links_of_a_page_outside_the_built_ones_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [link for link in links if link and "://" not in link and not (ROOT / link).exists()]
    assert not missing, missing


def test_the_architecture_names_every_module_of_the_kernel_once():
    text = (DOCS / "explanation" / "architecture.md").read_text(encoding="utf-8")
    table = re.search(r"^\| about \| modules.*\n\|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table is not None
    told = [name for row in table[1].splitlines() for name in re.findall(r"`([\w]+(?:\.py|/))`", row)]
    there = [path.name for path in (ROOT / "microkernel").glob("*.py") if not path.name.startswith("_")]
    there += [f"{path.parent.name}/" for path in (ROOT / "microkernel").glob("*/__init__.py")]
    assert sorted(told) == sorted(there)


def all_tests() -> str:
    if not _tests:
        _tests.extend(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    return "\n".join(_tests)


_tests: list[str] = []


def test_each_decision_is_listed_and_has_its_parts():
    decisions = sorted((DOCS / "decisions").glob("[0-9]*.md"))
    index = (DOCS / "decisions" / "index.md").read_text(encoding="utf-8")
    for number, page in enumerate(decisions, 1):
        text = page.read_text(encoding="utf-8")
        assert page.name.startswith(f"{number:04}-")
        assert f"({page.name})" in index
        assert len(text.splitlines()) <= 40
        for part in ("**Context.**", "**Decision.**", "**Consequences.**"):
            assert part in text, f"{page.name} has no {part}"
