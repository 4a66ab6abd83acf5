"""Tiny models of transformers, written once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a family's tiny model."""
    import tiny_foreign

    folders: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in folders:
            folders[family] = tiny_foreign.write(tmp_path_factory.mktemp("foreign") / family, family)
        return folders[family]

    return folder
