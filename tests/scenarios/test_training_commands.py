"""`mk train` and `mk jobs`, as a user has them: a real node, a tiny model, files beside the configuration."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from tiny_model import write_tiny_model

ENDLESS = 100_000  # steps: nobody waits for the last one
CONFIG = """\
name = "{name}"
[model]
base = "{base}"
[data]
train = ["{data}"]
evaluation = ["held-out.jsonl"]
length = 32
[method]
rank = 4
[schedule]
steps = {steps}
rows = 2
shards = 2
[evaluation]
every = 4
[devices]
threads = 1
"""


class Node:
    """A booted node, and commands that are about it."""

    def __init__(self, folder: Path, ready: dict[str, Any]) -> None:
        self.folder = folder
        self.ready = ready

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "microkernel", "--root", str(self.folder / "root"), *arguments]

    def mk(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env=environment(self.folder),
            cwd=self.folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def json(self, *arguments: str) -> Any:
        done = self.mk("--json", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def config(self, name: str = "tiny", **values: Any) -> str:
        """The name of a configuration's file."""
        usual = {"base": "tiny", "data": "chats.jsonl", "steps": 8}
        (self.folder / f"{name}.toml").write_text(CONFIG.format(name=name, **{**usual, **values}))
        return f"{name}.toml"

    @contextmanager
    def endless(self, name: str) -> Iterator[str]:
        """The name of a job that runs, and is stopped in the end."""
        job = self.mk("train", "--detach", self.config(name, steps=ENDLESS)).stdout.strip()
        try:
            yield job
        finally:
            self.mk("jobs", "stop", job)

    def until_step(self, job: str, step: int) -> None:
        with subprocess.Popen(
            self.command("jobs", "watch", job, "--json"),
            env=environment(self.folder),
            stdout=subprocess.PIPE,
            text=True,
        ) as watching:
            assert watching.stdout is not None
            for line in watching.stdout:
                if json.loads(line)["job"]["step"] >= step:
                    watching.kill()
                    return
        pytest.fail(f"{job} ended: {self.mk('jobs', 'show', job).stdout}")


def environment(folder: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MICROKERNEL_")}
    return {**inherited, "HOME": str(folder), "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}


def chat(question: str, answer: str) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}) + "\n"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("training")
    write_tiny_model(folder / "tiny")
    (folder / "chats.jsonl").write_text("".join(chat(f"What is {n}?", f"It is {n}.") for n in range(30)))
    (folder / "held-out.jsonl").write_text("".join(chat(f"What is {n}?", f"It is {n}.") for n in range(30, 40)))
    command = [
        sys.executable,
        "-m",
        "microkernel",
        "boot",
        "--root",
        "root",
        "--port",
        "0",
        "--model",
        "tiny",
        "--json",
    ]
    with subprocess.Popen(
        command, env=environment(folder), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if line.startswith("{") and json.loads(line)["event"] == "ready":
                    yield Node(folder, json.loads(line))
                    break
            else:
                pytest.fail(f"the boot ended: {said}")
        finally:
            process.kill()


@pytest.fixture(scope="module")
def trained(node: Node) -> subprocess.CompletedProcess[str]:
    """What `mk train` said of a job that came to its end: tiny-1."""
    return node.mk("train", node.config())


# To the end


def test_a_job_is_followed_to_its_end_and_says_how_to_talk_to_what_came_of_it(trained):
    assert trained.returncode == 0, trained.stderr
    lines = trained.stdout.splitlines()
    assert lines[-3].startswith("tiny-1 is done: 8 steps, ")
    assert re.fullmatch(r"held-out loss [\d.]+ at step 0, [\d.]+ at step 8", lines[-2])
    assert lines[-1] == "the result is the model tiny-1: mk chat tiny-1"


def test_files_beside_the_configuration_are_in_the_tree(node: Node, trained):
    assert "2 files, " in trained.stderr
    assert node.mk("fs", "cat", "/data/tiny/chats.jsonl").stdout == (node.folder / "chats.jsonl").read_text()


def test_what_was_learned_answers_at_the_gateway(node: Node, trained):
    asked = {"model": "tiny-1", "messages": [{"role": "user", "content": "What is 3?"}], "max_tokens": 4}
    request = urllib.request.Request(
        f"{node.ready['url']}/v1/chat/completions",
        data=json.dumps(asked).encode(),
        headers={"Authorization": f"Bearer {node.ready['token']}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        told = json.load(answer)
    assert told["model"] == "tiny-1"
    assert told["choices"][0]["message"]["content"]


def test_the_curve_is_a_picture_and_a_file(node: Node, trained):
    done = node.mk("jobs", "curve", "tiny-1", "--svg", "curve.svg", "--csv", "curve.csv")
    assert done.returncode == 0, done.stderr
    marks = {each.get("class") for each in ET.parse(node.folder / "curve.svg").iter()}
    assert {"mean", "held", "dot"} <= marks
    with (node.folder / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["loss"]] == list(range(1, 9))
    assert [int(row["step"]) for row in rows if row["evaluation_loss"]] == [0, 4, 8]


def test_the_curve_is_a_chart_in_the_terminal(node: Node, trained):
    lines = node.mk("jobs", "curve", "tiny-1").stdout.splitlines()
    assert lines[0] == "tiny-1: lora, tiny, done"
    assert lines[-1].split() == ["step", "0", "8", "o", "held", "out"]


def test_everything_about_a_job_is_shown(node: Node, trained):
    shown = node.mk("jobs", "show", "tiny-1").stdout
    for told in ("done", "root", "8 of 8", "held-out loss", "last checkpoint"):
        assert told in shown


# Stopped, taken up, forgotten


def test_a_job_that_was_stopped_goes_on_where_it_was_and_can_be_forgotten(node: Node):
    with node.endless("long") as job:
        node.until_step(job, 3)
        stopped = node.json("jobs", "stop", job)
        assert (stopped["state"], stopped["saved_step"]) == ("stopped", stopped["step"])
        refused = node.mk("jobs", "stop", job)
        assert (refused.returncode, refused.stderr) == (1, f"error: job '{job}' is stopped\n")
        assert node.mk("jobs", "resume", job).stdout == f"{job} goes on: mk jobs watch {job}\n"
        node.until_step(job, stopped["step"] + 1)
        assert "is running" in node.mk("jobs", "forget", job).stderr
        assert node.json("jobs")[0]["job"] == job
    first = next(point["step"] for point in node.json("jobs", "curve", job) if point["loss"] is not None)
    assert first == 1
    assert node.mk("jobs", "forget", job).stdout == f"{job} is forgotten\n"
    gone = node.mk("jobs", "show", job)
    assert (gone.returncode, gone.stderr) == (1, f"error: there is no job '{job}' (see `mk jobs`)\n")


def test_who_leaves_with_ctrl_c_leaves_the_job_running(node: Node):
    with subprocess.Popen(
        node.command("train", node.config("left", steps=ENDLESS)),
        env=environment(node.folder),
        cwd=node.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        assert next(line for line in following.stdout if line.startswith("step "))
        following.send_signal(signal.SIGINT)
        _, said = following.communicate()
    try:
        assert following.returncode == 130
        assert "left-1 goes on without you: mk jobs watch left-1, mk jobs stop left-1" in said
        assert node.json("jobs", "show", "left-1")["state"] == "running"
    finally:
        node.mk("jobs", "stop", "left-1")


# What is wrong


def failed(node: Node, *arguments: str) -> str:
    done = node.mk(*arguments)
    assert done.returncode == 1
    return done.stderr if done.stderr.startswith("error: ") else done.stdout


def test_a_key_that_is_not_known_is_named_with_its_line(node: Node):
    (node.folder / "wrong.toml").write_text('[model]\nbase = "tiny"\n[data]\ntrian = ["chats.jsonl"]\n')
    assert "wrong.toml, line 4: data.trian: there is no such key" in failed(node, "train", "wrong.toml")


def test_a_file_that_is_not_there_is_named_with_its_line(node: Node):
    said = failed(node, "train", node.config("missing", data="missing.jsonl"))
    assert said == f"error: missing.toml, line 5: data.train: there is no file {node.folder}/missing.jsonl\n"


def test_a_configuration_that_is_not_there_is_named(node: Node):
    assert failed(node, "train", "none.toml") == "error: none.toml cannot be read: No such file or directory\n"


def test_a_relative_path_that_nobody_has_put_into_the_tree_is_refused(node: Node):
    text = (node.folder / node.config("relative")).read_text()
    said = failed(node, "call", "training.start", json.dumps({"text": text}))
    assert "line 5: data.train: 'chats.jsonl' is relative, and the node does not know to what" in said


def test_a_model_that_is_not_there_fails_the_job_with_the_reason(node: Node):
    said = failed(node, "train", node.config("unknown", base="nobody"))
    assert "unknown-1 is failed: " in said
    assert "nobody" in said


def test_a_check_starts_nothing_and_puts_nothing_into_the_tree(node: Node):
    done = node.mk("train", "--check", node.config("checked"))
    assert done.stdout.splitlines()[-1] == "checked.toml is right: checked, lora"
    assert not any(job["name"] == "checked" for job in node.json("jobs"))
    assert node.mk("fs", "stat", "/data/checked").returncode == 1
