"""The reference has what the code has, and no more: commands, handlers, events, settings, versions, errors."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from docs.page import DOCS, PAGES, ROOT

from microkernel.cli import make_parser
from microkernel.errors import Code
from microkernel.service import handlers_of


def parsers(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """All commands and actions with their parsers."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, sub in action.choices.items():
                yield from parsers(sub, f"{name} {word}")


def arguments(parser: argparse.ArgumentParser) -> set[str]:
    """What it takes beside what every command takes: options by their longest name, positionals by their metavar."""
    return {
        max(action.option_strings, key=len) if action.option_strings else str(action.metavar)
        for action in parser._actions
        if not isinstance(action, argparse._SubParsersAction)
        and action.dest not in {"help", "json", "url", "root", "on"}
    }


def test_the_reference_has_every_command_with_every_argument_and_no_other():
    text = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    sections = {
        heading.strip("`").replace("`", ""): body
        for heading, body in re.findall(r"^#{2,3} (`mk[^\n]*)\n(.*?)(?=^#{2,3} |\Z)", text, re.MULTILINE | re.DOTALL)
    }
    there = dict(parsers(make_parser(), "mk"))
    del there["mk"]
    assert sections.keys() == there.keys()
    for name, parser in there.items():
        rows = re.findall(r"^\| `([^`]+)`", sections[name].replace(r"\|", "|"), re.MULTILINE)
        told = {
            max((word for word in row.replace(",", " ").split() if word.startswith("--")), default=row) for row in rows
        }
        assert told == arguments(parser), name


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that makes pages from the code, as the build imports it."""
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("generate")


def test_what_is_generated_has_every_handler_every_setting_and_every_error(generate):
    made = {name: make() for name, make in generate.GENERATED.items()}
    for kind in generate.service_classes():
        for handler in handlers_of(kind):
            assert f"| [`{kind.name}.{handler.name}`](#" in made["services"]
        for field in msgspec.structs.fields(kind.Settings):
            assert f"| `{field.name}` |" in made["settings"].partition(f"[services.{kind.name}]")[2]
    for code in Code:
        assert f"| `{code}` |" in made["error_codes"]
    used = [name for page in PAGES for name in generate.MARK.findall(page.read_text(encoding="utf-8"))]
    assert sorted(used) == sorted(made)


def test_every_handler_is_told_of_with_its_fields_its_limits_and_what_it_gives(generate):
    parts = re.split(r"^### ", generate.messages(), flags=re.MULTILINE)
    sections = {part.partition("\n")[0]: part for part in parts}
    for kind in generate.service_classes():
        for handler in handlers_of(kind):
            section = sections[f"{kind.name}.{handler.name}"]
            if handler.takes_message and isinstance(handler.message, type):
                for field in msgspec.structs.fields(handler.message):
                    assert f"| `{field.encode_name}`{'' if field.required else '?'} |" in section
            assert f", {handler.concurrency} at a time, {handler.queue} waiting" in section
            assert ("No deadline" if handler.deadline is None else f"Deadline {handler.deadline:g} s") in section
            assert ("idempotent" in section) == handler.idempotent
            assert ("Items of" in section) == (handler.kind == "stream")
            assert (f"credit {handler.credit}" in section) == (handler.kind == "stream")


def test_every_link_within_what_is_generated_leads_to_something_that_is(generate):
    text = "\n".join(generate.fill(page.read_text(encoding="utf-8")) for page in (DOCS / "reference").glob("*.md"))
    targets = re.findall(r"^\(([\w.-]+)\)=$", text, re.MULTILINE)
    assert len(targets) == len(set(targets))
    assert set(re.findall(r"\]\(#((?:call|message)-[\w.-]+)\)", text)) <= set(targets)


def published(tree: ast.Module) -> Iterator[tuple[str, set[str]]]:
    """Each subject that a module publishes on, with the fields that are named there."""
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        subject = node.args[0]
        fields = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
        if node.func.attr not in {"publish", "deliver"}:
            continue
        if isinstance(subject, ast.Constant):
            yield str(subject.value), fields
        elif isinstance(subject, ast.JoinedStr):
            yield re.sub(r"{(\w+)}", r"<\1>", ast.unparse(subject)[2:-1]), fields
        elif isinstance(subject, ast.Name) and subject.id in constants:
            yield str(constants[subject.id]), fields


def test_the_reference_has_every_event_that_the_code_publishes_with_its_fields(generate):
    code: dict[str, set[str]] = {}
    for file in (file for each in ("microkernel", "services") for file in (ROOT / each).rglob("*.py")):
        for subject, fields in published(ast.parse(file.read_text("utf-8"))):
            code.setdefault(subject, set()).update(fields)
    told = {each.subject: each for each in generate.EVENTS}
    assert told.keys() == code.keys()
    for subject, fields in code.items():
        if fields:
            assert {name.rstrip("?") for name in told[subject].body} == fields, subject
    for subject in told:
        assert f"| `{subject}` |" in generate.events()


def test_each_direct_dependency_is_told_of_with_the_version_that_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    wanted = {normal(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]) for line in lines}
    pins = {
        normal(name): version
        for name, found, version in (
            line.partition("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        )
        if found and not name.startswith("#")
    }
    told = re.findall(r"^\| `([^`]+)` \| ([^ |]+) \|", (DOCS / "dependencies.md").read_text("utf-8"), re.MULTILINE)
    assert {normal(name): version for name, version in told} == {name: pins[name] for name in wanted}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_each_error_that_troubleshooting_quotes_is_one_that_the_code_says():
    text = (DOCS / "how-to" / "troubleshoot.md").read_text(encoding="utf-8")
    code = " ".join(
        file.read_text(encoding="utf-8")
        for each in ("microkernel", "formats", "services", "drivers")
        for file in (ROOT / each).rglob("*.py")
    )
    tables = re.findall(r"^\| it says \|.*\n\|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    quoted = [
        line for table in tables for row in table.splitlines() for line in re.findall("`([^`]+)`", row.split(" | ")[0])
    ]
    assert quoted
    for line in quoted:
        for part in filter(None, (part.strip() for part in line.split("…"))):
            assert part in code, f"nothing says '{part}'"
