"""What the house promises about itself, beyond the import contracts that `make check` enforces."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path for top in ("microkernel", "formats", "services", "drivers") for path in (ROOT / top).rglob("*.py")
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_says_in_its_first_sentence_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name_of(path)} has no docstring"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_room_is_so_large_that_nobody_knows_what_it_holds(path):
    assert len(path.read_text().splitlines()) <= 500


def test_names_are_the_words_of_the_trade():
    vague = re.compile(r"(Manager|Helper|Utils?|Base|Data|Info)$")
    found = [
        f"{name_of(path)}: {node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and vague.search(node.name)
    ]
    assert found == []


@pytest.mark.parametrize(("group", "kinds"), [("services", ["services"]), ("drivers", ["drivers", "launchers"])])
def test_every_built_in_registers_through_an_entry_point_as_a_plugin_does(group, kinds):
    folders = {path.parent.name for path in (ROOT / group).glob("*/__init__.py")}
    registered = {
        point.name
        for kind in kinds
        for point in entry_points(group=f"microkernel.{kind}")
        if point.value.startswith(f"{group}.{point.name}.")
    }
    assert registered == folders


def test_nothing_but_pyproject_names_a_services_module():
    named = re.compile(r"\b(services|drivers)\.\w+\.\w+:\w+")
    assert [name_of(path) for path in SOURCES if named.search(path.read_text())] == []


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    names = {re.split(r"[<>=;!\[ ]", name)[0].lower().replace("_", "-") for name in wanted}
    assert names - pinned == set()
