"""All machines of a cluster may be told the same: which of them begins it, and what lets the others in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from microkernel.cli import make_parser
from microkernel.cli.boot import configured
from microkernel.config import Config


def booted(tmp_path: Path, *arguments: str, config: str | None = None) -> Config:
    given = ["boot", "--root", str(tmp_path), *arguments]
    if config is not None:
        file = tmp_path / "mk.toml"
        file.write_text(config)
        given += ["--config", str(file)]
    return configured(make_parser().parse_args(given))


def cluster(config: Config) -> dict[str, Any]:
    return config.services["cluster"]


def test_the_file_of_the_join_secret_is_found_from_wherever_the_node_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cluster(booted(tmp_path, "--join-secret", "join"))["join_secret"] == str(tmp_path / "join")
