"""The models that are measured where none is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["encoding_node", "store_both", "stored_encoder", "stored_model"]


def stored_model() -> Path:
    """The default model from the usual state folder's store, pulled into it if it is not there yet."""
    from services.models.messages import DEFAULT_MODEL

    return _stored(DEFAULT_MODEL)


def stored_encoder() -> Path:
    """The same for the default embedding model."""
    from services.models.messages import DEFAULT_EMBEDDING_MODEL

    return _stored(DEFAULT_EMBEDDING_MODEL)


def store_both() -> None:
    """Have both pulled before anybody is measured."""
    stored_model()
    stored_encoder()


def encoding_node() -> dict[str, dict[str, Any]]:
    """Settings of a node that has both, and tunes nothing while it is another one's turn to be measured."""
    return {
        "devices": {"tune_after": 0.0},
        "inference": {
            "model": str(stored_model()),
            "embedding_model": str(stored_encoder()),
            "device": "cpu0",
            "tune_after": 0.0,
        },
    }


def _stored(ref: str) -> Path:
    from microkernel.root import default_root
    from services.models.pull import pull
    from services.models.store import ModelStore
    from services.models.transfer import Transfer

    store = ModelStore(default_root() / "models")
    store.open()
    return Path(pull(store, ref, Transfer()).path)
