"""The documentation does what it says: its code runs, its commands parse, its names exist."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from tiny_model import write_tiny_model

from microkernel.cli import make_parser
from microkernel.config import read_config, settings_of
from microkernel.errors import Code
from microkernel.service import handlers_of

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts),
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
]
TUTORIAL = DOCS / "tutorial" / "first-plugin.md"
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
SKIPPED = {"reference/wire.md": "reads events for as long as there are any"}


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
    found = [page for page in PAGES if any(block.language in languages for block in blocks(page))]
    return [pytest.param(page, id=name_of(page)) for page in found]


class Node:
    """A booted node, and a shell beside it."""

    def __init__(self, folder: Path, command: str) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MICROKERNEL_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MICROKERNEL_ROOT": str(self.state),
            "NO_COLOR": "1",
        }
        self.url = ""
        self.output: list[str] = []
        # The page's own command, but on a free port.
        self.process = subprocess.Popen(
            [*shlex.split(command), "--port", "0"],
            cwd=folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if line.startswith("address"):
                self.url = line.split()[1]
                return
        pytest.fail(f"the boot ended: {''.join(self.output)}")

    def shell(self, command: str) -> str:
        """What `command` writes, errors included, in order."""
        done = subprocess.run(
            ["bash", "-c", f"{command} 2>&1"],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return done.stdout

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        try:
            assert self.process.wait(30) == 0
        finally:
            self.process.kill()
            self.process.stdout.close()


async def run(text: str, where: str, names: dict[str, Any]) -> None:
    """Run a block as Python's own asyncio console would: `await` may stand at the top."""
    code = compile(text, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    running = eval(code, names)
    if inspect.isawaitable(running):
        await running


def shell_commands(block: Block) -> list[str]:
    """The commands of a block; in a console those behind a `$`."""
    joined = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        return [line.removeprefix("$ ") for line in joined if line.startswith("$ ")]
    return [line for line in joined if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with a tiny model."""
    folder = tmp_path_factory.mktemp("docs")
    write_tiny_model(folder / "tiny")
    running = Node(folder, f"{sys.executable} -m microkernel boot --model tiny")
    yield running
    running.stop()


@pytest.mark.parametrize("page", [param for param in pages_with("python") if param.values[0] != TUTORIAL])
async def test_the_python_of_a_page_runs(page, node, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MICROKERNEL_ROOT", str(node.state))
    monkeypatch.setenv("MICROKERNEL_URL", node.url)
    monkeypatch.setenv("MICROKERNEL_TOKEN", (node.state / "token").read_text().strip())
    names: dict[str, Any] = {"__name__": "docs"}
    monkeypatch.setitem(sys.modules, "docs", type(sys)("docs"))  # messages look up their annotations there
    names = vars(sys.modules["docs"])
    for block in blocks(page):
        if block.language != "python":
            continue
        where = f"{page}, line {block.line}"
        if block.mark.startswith("skip:") or name_of(page) in SKIPPED:
            compile(block.text, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            continue
        await run(block.text, where, names)


async def test_the_first_plugin_does_what_the_tutorial_says_word_for_word(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MICROKERNEL_ROOT", str(tmp_path / "state"))
    for name in ("MICROKERNEL_URL", "MICROKERNEL_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    node = None
    try:
        for block in blocks(TUTORIAL):
            if block.mark.startswith("file: "):
                (tmp_path / block.mark.removeprefix("file: ")).write_text(block.text)
            elif block.mark == "background":
                [command] = shell_commands(block)
                node = Node(tmp_path, command)
            elif block.language == "console":
                assert node is not None
                _follow(node, block)
            elif block.language == "python":
                await run(block.text, f"{TUTORIAL}, line {block.line}", {"__name__": "docs"})
    finally:
        monkeypatch.delitem(sys.modules, "kv", raising=False)
        if node is not None:
            node.stop()


def _follow(node: Node, block: Block) -> None:
    """Run each command and compare what it says: `…` stands for anything, and columns may be wider."""
    for entry in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, expected = entry.partition("\n")
        said = node.shell(command)
        pattern = "\n".join(r"\s+".join(map(_wild, line.split())) + r"\s*" for line in expected.splitlines())
        assert re.fullmatch(pattern, said.rstrip("\n")), f"line {block.line}: {command} said:\n{said}"


def _wild(word: str) -> str:
    return ".*".join(map(re.escape, word.split("…")))


@pytest.mark.parametrize("page", pages_with("toml"))
def test_the_settings_of_a_page_are_taken(page, tmp_path):
    kinds = {point.name: point.load() for point in entry_points(group="microkernel.services")}
    for block in blocks(page):
        if block.language != "toml" or block.mark.startswith("skip:"):
            continue
        if block.text.startswith("# pyproject.toml"):
            assert "project" in tomllib.loads(block.text)
            continue
        file = tmp_path / "mk.toml"
        file.write_text(block.text)
        config = read_config(file)
        for name in config.services:
            settings_of(config, name, kinds[name].Settings)


@pytest.mark.parametrize("page", pages_with("bash", "console"))
def test_the_commands_of_a_page_are_ones_that_there_are(page):
    makefile = (ROOT / "Makefile").read_text()
    for block in blocks(page):
        if block.language not in {"bash", "console"}:
            continue
        for command in shell_commands(block):
            words = shlex.split(command, comments=True)
            if words[:3] == ["python", "-m", "microkernel"]:
                words[:3] = ["mk"]
            if words[0] == "mk":
                ends = [place for place, word in enumerate(words) if word in {"|", ">", "&", "&&"}]
                make_parser().parse_args(words[1 : ends[0] if ends else None])
            elif words[0] == "make":
                for target in (word for word in words[1:] if "=" not in word):
                    assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"line {block.line}: make {target}"


# The reference


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
        if not isinstance(action, argparse._SubParsersAction) and action.dest not in {"help", "json", "url", "root"}
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


def test_what_is_generated_has_every_handler_every_setting_and_every_error():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    made = {name: make() for name, make in generate.GENERATED.items()}
    for kind in generate.service_classes():
        for handler in handlers_of(kind):
            assert f"### {kind.name}.{handler.name}\n" in made["services"]
        for field in msgspec.structs.fields(kind.Settings):
            assert f"| `{field.name}` |" in made["settings"].partition(f"[services.{kind.name}]")[2]
    for code in Code:
        assert f"| `{code}` |" in made["error_codes"]
    used = [name for page in PAGES for name in generate.MARK.findall(page.read_text(encoding="utf-8"))]
    assert sorted(used) == sorted(made)


def test_the_reference_has_every_event_that_the_code_publishes():
    code = [file.read_text("utf-8") for each in ("microkernel", "services") for file in (ROOT / each).rglob("*.py")]
    published = {
        re.sub(r"{(\w+)}", r"<\1>", subject)
        for text in code
        for subject in re.findall(r'publish\(\s*f?"([^"]+)"', text)
    }
    _, _, section = (DOCS / "reference" / "services.md").read_text(encoding="utf-8").partition("## Events")
    told = {
        name for row in re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE) for name in re.findall("`([^`]+)`", row)
    }
    assert told == published


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
        file.read_text(encoding="utf-8") for each in ("microkernel", "services") for file in (ROOT / each).rglob("*.py")
    )
    tables = re.findall(r"^\| it says \|.*\n\|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    quoted = [
        line for table in tables for row in table.splitlines() for line in re.findall("`([^`]+)`", row.split(" | ")[0])
    ]
    assert quoted
    for line in quoted:
        for part in filter(None, (part.strip() for part in line.split("…"))):
            assert part in code, f"nothing says '{part}'"


# Names


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in PAGES])
def test_the_files_and_tests_that_a_page_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:microkernel|services|drivers|tests|examples|benchmarks|docs)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), f"{page} names {path}"
    for test in re.findall(r"`(test_\w+)`", text):
        assert f"def {test}(" in all_tests(), f"{page} names {test}"


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md", "README.md"])
def test_the_links_of_a_page_outside_the_built_ones_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [link for link in links if link and "://" not in link and not (ROOT / link).exists()]
    assert not missing, missing


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
