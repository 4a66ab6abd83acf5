"""Where models come from, one module a kind; each ends in files that lie checked and flushed beside the store."""

from __future__ import annotations

import msgspec

from services.models.layout import Description
from services.models.store import Staged

__all__ = ["Fetched"]


class Fetched(msgspec.Struct, frozen=True):
    """What a source has brought: files that can be taken into the store, and the name that they suggest."""

    files: tuple[Staged, ...]
    about: Description
    name: str
