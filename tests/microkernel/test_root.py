"""The state folder and its lock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from microkernel.errors import PreconditionFailed
from microkernel.root import Root


def test_the_note_of_a_node_counts_only_while_a_node_has_the_folder(tmp_path: Path) -> None:
    root = Root(tmp_path)
    assert Root(tmp_path).running_node() is None
    root.acquire()
    root.write_node("http://127.0.0.1:7070")
    assert (Root(tmp_path).running_node() or {})["url"] == "http://127.0.0.1:7070"
    note = root.node_path.read_bytes()
    root.release()
    root.node_path.write_bytes(note)  # as a node that was killed leaves it
    assert Root(tmp_path).running_node() is None


def test_a_node_that_takes_the_folder_removes_the_note_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text(json.dumps({"url": "http://127.0.0.1:7070", "pid": 1}))
    root = Root(tmp_path)
    root.acquire()
    try:
        assert Root(tmp_path).is_taken()
        assert Root(tmp_path).running_node() is None
    finally:
        root.release()
    assert not Root(tmp_path).is_taken()


def test_who_looks_at_the_lock_takes_nothing_and_makes_nothing(tmp_path: Path) -> None:
    assert not Root(tmp_path / "absent").is_taken()
    assert not (tmp_path / "absent").exists()
    root = Root(tmp_path)
    root.acquire()
    assert all(Root(tmp_path).is_taken() for _ in range(3))
    with pytest.raises(PreconditionFailed, match="a node already runs"):
        Root(tmp_path).acquire()
    root.release()
    assert not any(Root(tmp_path).is_taken() for _ in range(3))
    root.acquire()
    root.release()
