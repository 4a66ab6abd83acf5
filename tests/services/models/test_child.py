"""The programs that fetch: what they are given and what not."""

from __future__ import annotations

import sys

from services.models.child import run_child
from services.models.transfer import Transfer


def test_a_child_inherits_the_environment_but_for_what_is_the_nodes_own(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MICROKERNEL_TOKEN", "secret")
    monkeypatch.setenv("HF_TOKEN", "needed")
    lines: list[str] = []
    ended = run_child(
        [sys.executable, "-c", "import os; print(*sorted(os.environ), sep='\\n')"],
        Transfer(),
        folder=tmp_path,
        environment={"ADDED": "1"},
        on_line=lines.append,
    )
    assert ended.code == 0
    assert {"HF_TOKEN", "ADDED", "PATH"} <= set(lines)
    assert not [name for name in lines if name.startswith("MICROKERNEL_")]
