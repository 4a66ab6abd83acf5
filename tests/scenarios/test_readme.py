"""The README, block by block, as a newcomer follows it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
BOOT, TEST, TALK, EXPORTS, OPENAI, WEBSOCKET, PLUGIN, ADD, TRAIN = range(9)

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]


def block(number: int, language: str) -> str:
    assert BLOCKS[number][0] == language
    return BLOCKS[number][1]


class Newcomer:
    """Somebody who has booted a node with `make boot` and types into another terminal."""

    def __init__(self, folder: Path, model: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}"
        self.state = folder / "state"
        self.output = ""
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MICROKERNEL_ROOT": str(self.state),
            "MICROKERNEL_TOKEN": "",
        }
        self.environment.pop("MICROKERNEL_URL", None)
        # The same command, with a free port, and the model that the tests have fetched already.
        virtual = Path(sys.executable).parent.parent
        make = {"ARGS": f"--port {port} --model {model}", "VENV": str(virtual), "PYTHON": sys.executable}
        [command] = block(BOOT, "bash").splitlines()
        self.node = subprocess.Popen(
            command.split(),
            cwd=ROOT,
            env={**self.environment, **make},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_until_ready(self) -> None:
        for line in self.node.stdout:
            self.output += line
            if "what to try next" in line:
                return
        raise AssertionError(f"boot ended early:\n{self.output}")

    def run(self, command: list[str], **more: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def shell(self, text: str) -> str:
        return self.run(["bash", "-euo", "pipefail", "-c", text])

    def leave(self) -> str:
        """End the node; returns what it said meanwhile. make ends first, the node when its output does."""
        os.killpg(self.node.pid, signal.SIGTERM)
        said, _ = self.node.communicate(timeout=60)
        return said


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory, default_model):
    newcomer = Newcomer(tmp_path_factory.mktemp("newcomer"), default_model)
    try:
        newcomer.wait_until_ready()
        yield newcomer
    finally:
        if newcomer.node.poll() is None:
            newcomer.leave()
        newcomer.node.stdout.close()


def test_the_readme_has_these_blocks_and_no_others():
    assert [language for language, _ in BLOCKS] == [
        "bash",
        "bash",
        "bash",
        "bash",
        "python",
        "python",
        "python",
        "bash",
        "bash",
    ]


def test_make_boot_ends_with_a_table_the_address_and_the_token(newcomer):
    assert newcomer.url in newcomer.output
    assert (newcomer.state / "token").read_text().strip() in newcomer.output
    for service in ("inference", "gateway", "scheduler"):
        assert re.search(rf"^{service} +ready", newcomer.output, re.MULTILINE)


def test_make_test_is_what_runs_this():
    assert block(TEST, "bash") == "make test\n"
    dry = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "pytest" in dry.stdout


def test_the_commands_answer(newcomer):
    output = newcomer.shell(block(TALK, "bash"))
    assert "Name three colours." in output, "ps shows the chat"
    assert re.search(r"^inference +ready", output, re.MULTILINE)


def test_the_openai_client_streams_an_answer(newcomer):
    (newcomer.folder / "chat_openai.py").write_text(block(OPENAI, "python"))
    exports = block(EXPORTS, "bash").replace("http://127.0.0.1:7070", newcomer.url)
    exports = exports.replace("~/.microkernel", str(newcomer.state))
    output = newcomer.shell(exports.replace("pip install", "pip install --quiet") + "python chat_openai.py")
    assert len(output.split()) > 2


def test_the_websocket_streams_an_answer_and_shows_its_process(newcomer):
    (newcomer.folder / "chat_websocket.py").write_text(block(WEBSOCKET, "python"))
    output = newcomer.run([sys.executable, "chat_websocket.py"])
    assert re.search(r"\d+ done Name three colours\. \d+", output)


def test_the_plugin_is_added_called_and_described(newcomer):
    (newcomer.folder / "kv.py").write_text(block(PLUGIN, "python"))
    output = newcomer.shell(block(ADD, "bash"))
    assert "blue" in output
    assert "kv.scan" in output


def test_the_job_that_it_trains_is_one_that_there_is(newcomer):
    command = block(TRAIN, "bash").splitlines()[0].split()
    config = str(ROOT / command[-1])
    assert newcomer.run([*command[:-1], "--check", config]).endswith(f"{config} is right: skerrin, lora\n")


@pytest.mark.parametrize(
    ("number", "path"), [(OPENAI, "chat_openai.py"), (WEBSOCKET, "chat_websocket.py"), (PLUGIN, "kv.py")]
)
def test_the_examples_are_the_blocks(number, path):
    example = (ROOT / "examples" / path).read_text(encoding="utf-8")
    assert example.partition('"""\n\n')[2].strip() == block(number, "python").strip()


def test_sigterm_ends_the_node_in_good_order(newcomer):
    said = newcomer.leave()
    assert not (newcomer.state / "node.json").exists()
    assert "Traceback" not in said
    assert "warning" not in said
