"""A node under what happens to machines: a full disk, a kill -9, at the worst moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from microkernel.wire.client import connect_sync

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]


@contextmanager
def booting(root: Path, *arguments: str):
    """A node that boots with JSON events on its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MICROKERNEL_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "microkernel", "--json", "boot", "--root", str(root), "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until(process: subprocess.Popen, wanted) -> dict:
    """The first event for which `wanted(event)` holds."""
    for line in process.stdout:
        event = json.loads(line)
        if wanted(event):
            return event
    pytest.fail(f"the node ended: {process.stderr.read()}")


def is_ready(event: dict) -> bool:
    return event["event"] == "ready"


def ask(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "microkernel", "--root", str(root), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(root: Path) -> list[str]:
    """What the store holds, without what it keeps to go on from."""
    store = root / "models"
    kept = ("blobs", "manifests", "snapshots")
    return sorted(str(path.relative_to(store)) for kind in kept for path in (store / kind).rglob("*") if path.is_file())


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 64 MB, too small for the default model; skipped where mounting needs rights."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_in_a_pull_is_one_line_and_with_more_room_the_boot_goes_on(small_disk):
    with booting(small_disk) as process:
        _, error = process.communicate(timeout=200)
    assert process.returncode == 1
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "disk" in error.lower()
    assert "MB" in error
    assert files(small_disk) == [], "nothing half is in the store"
    subprocess.run(["mount", "-o", "remount,size=1g", str(small_disk)], check=True)
    with booting(small_disk) as process:
        until(process, is_ready)
        assert ask(small_disk, "chat", "--once", "Hello", "--max-tokens", "4")


def test_a_node_killed_in_the_middle_of_a_pull_leaves_nothing_half_and_boots_again(tmp_path):
    with booting(tmp_path) as process:
        until(process, lambda event: event["event"] == "models.progress" and "unpacking" in event["text"])
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not [name for name in files(tmp_path) if name.startswith("manifests")]
    with booting(tmp_path) as process:
        until(process, is_ready)
        assert "every byte is as it was" in ask(tmp_path, "doctor")


def test_a_node_killed_while_it_answers_boots_again_on_the_same_folder_without_a_pull(tmp_path, default_model):
    with booting(tmp_path, "--model", str(default_model)) as process:
        until(process, is_ready)
        chat = subprocess.Popen(
            [sys.executable, "-m", "microkernel", "--root", str(tmp_path), "chat", "--once", "Count to a thousand."],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert chat.stdout.read(1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _, error = chat.communicate(timeout=60)
        assert chat.returncode == 1
        assert "link" in error, "the client is told at once that the node is gone"
    with booting(tmp_path, "--model", str(default_model)) as process:
        until(process, is_ready)
        assert ask(tmp_path, "chat", "--once", "Hello", "--max-tokens", "4")


def test_after_a_kill_a_conversation_of_2000_tokens_is_not_read_again_and_goes_on_as_it_would_have(
    tmp_path, default_model
):
    talk = [
        {"role": "user", "content": "A story. " + " ".join(f"Then the keeper lit lamp {lamp}." for lamp in range(200))}
    ]
    asked = {"messages": talk, "max_tokens": 40, "temperature": 0}

    def turn() -> tuple[str, int, int]:
        with connect_sync(root=tmp_path) as system, system.stream("inference.chat", **asked) as pieces:
            said = list(pieces)
        usage = said[-1]["usage"]
        return "".join(piece["text"] for piece in said), usage["prompt_tokens"], usage["cached_tokens"]

    with booting(tmp_path, "--model", str(default_model)) as process:
        until(process, is_ready)
        before, length, cached = turn()
        assert length > 1500
        assert cached == 0
        pages = tmp_path / "inference" / "contexts"
        while len(list(pages.glob("?" * 64))) < length // 16:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    with booting(tmp_path, "--model", str(default_model)) as process:
        until(process, is_ready)
        after, _, cached = turn()
    assert after == before
    assert cached >= length - 32
