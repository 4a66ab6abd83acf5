"""The documentation does what it says: its code runs, its commands parse, its settings are taken.

Pages in `FOLLOWED` are followed word for word: files are written, the node is booted with the page's own command, each
command says what the page says, and the Python runs beside that node. On the others each block of Python runs beside a
node with a tiny model.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

import pytest
from docs.page import DOCS, ROOT, blocks, name_of, pages_with, shell_commands
from docs.reader import Node, follow, run
from tiny_model import write_tiny_model

from microkernel.cli import make_parser
from microkernel.config import read_config, settings_of
from services.training.config import read_job

CLIENT = DOCS / "how-to" / "write-a-client.md"
FOLLOWED = [DOCS / "tutorial" / "first-plugin.md", DOCS / "tutorial" / "plugin-in-depth.md", CLIENT]
SKIPPED = {"reference/wire.md": "reads events for as long as there are any"}
ADDRESS = "127.0.0.1:7070"  # on a page; the node that a test boots has a free port
NODE = ("node", "--no-warnings", "--experimental-websocket")  # the flag is needed by Node.js 20, harmless later


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with a tiny model."""
    folder = tmp_path_factory.mktemp("docs")
    write_tiny_model(folder / "tiny")
    running = Node(folder, f"{sys.executable} -m microkernel boot --model tiny")
    yield running
    running.stop()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the blocks of a page share; messages look up their annotations in the module."""
    module = ModuleType("page_that_runs")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return vars(module)


@pytest.mark.parametrize("page", [param for param in pages_with("python") if param.values[0] not in FOLLOWED])
async def test_the_python_of_a_page_runs(page, node, names, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MICROKERNEL_ROOT", str(node.state))
    monkeypatch.setenv("MICROKERNEL_URL", node.url)
    monkeypatch.setenv("MICROKERNEL_TOKEN", (node.state / "token").read_text().strip())
    for block in blocks(page):
        if block.language != "python":
            continue
        where = f"{page}, line {block.line}"
        if block.mark.startswith("skip:") or name_of(page) in SKIPPED:
            compile(block.text, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            continue
        await run(block.text, where, names)


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in FOLLOWED])
async def test_a_page_that_is_followed_word_for_word_does_what_it_says(page, names, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MICROKERNEL_ROOT", str(tmp_path / "state"))
    for name in ("MICROKERNEL_URL", "MICROKERNEL_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    node = None
    try:
        for block in blocks(page):
            action, _, argument = block.mark.partition(": ")
            if action == "file":
                (tmp_path / argument).write_text(block.text)
            elif action == "append":
                with (tmp_path / argument).open("a") as file:
                    file.write("\n" + block.text)
            elif action == "background":
                [command] = shell_commands(block)
                node = Node(tmp_path, command)
            elif block.language == "console":
                assert node is not None
                follow(node, block)
            elif block.language == "python":
                here = ADDRESS if node is None else node.url.removeprefix("http://")
                await run(block.text.replace(ADDRESS, here), f"{page}, line {block.line}", names)
    finally:
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
                monkeypatch.delitem(sys.modules, name)
        if node is not None:
            node.stop()


# The browser's part of the page for clients


def scripts() -> list[str]:
    return [block.text for block in blocks(CLIENT) if block.language == "js"]


def has_websocket() -> bool:
    if shutil.which(NODE[0]) is None:
        return False
    probe = subprocess.run([*NODE, "-e", "process.exit(typeof WebSocket === 'function' ? 0 : 1)"], check=False)
    return probe.returncode == 0


def test_the_browser_s_lines_on_the_page_are_those_of_the_example():
    connect, _ = scripts()
    page = (ROOT / "examples" / "browser.html").read_text(encoding="utf-8")
    assert textwrap.indent(connect, "  ") in page


@pytest.mark.skipif(not has_websocket(), reason="needs Node.js with a WebSocket")
def test_the_browser_s_lines_on_the_page_do_what_it_says(tmp_path):
    [source] = [block.text for block in blocks(CLIENT) if block.mark == "file: library.py"]
    (tmp_path / "library.py").write_text(source)
    (tmp_path / "mk.toml").write_text('disable = ["inference", "models"]\n')
    node = Node(tmp_path, "mk boot --config mk.toml --service library.py")
    try:
        connect, use = scripts()
        script = f"const token = process.argv[1];\n{connect}\n(async () => {{\n{use}\n}})();"
        script = script.replace(ADDRESS, node.url.removeprefix("http://"))
        token = (node.state / "token").read_text().strip()
        done = subprocess.run([*NODE, "-e", script, token], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.split() == ["Persuasion", "1817", "NOT_FOUND"]
    finally:
        node.stop()


# Settings and commands


@pytest.mark.parametrize("page", pages_with("toml"))
def test_the_settings_of_a_page_are_taken(page, tmp_path):
    kinds = {point.name: point.load() for point in entry_points(group="microkernel.services")}
    for block in blocks(page):
        if block.language != "toml" or block.mark.startswith("skip:"):
            continue
        if page in FOLLOWED:
            continue  # its node boots with them
        if block.mark == "job":
            read_job(block.text)
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
                ends = [place for place, word in enumerate(words) if word in {"|", ">", "<", "&", "&&"}]
                make_parser().parse_args(words[1 : ends[0] if ends else None])
            elif words[0] == "make":
                for target in (word for word in words[1:] if "=" not in word):
                    assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"line {block.line}: make {target}"
