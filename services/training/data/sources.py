"""Files that data are read from, watched: what was read is what was named by its digest, or the reader is told.

And a tokenizer's digest, by what defines it: the `tokenizer.*` keys of a GGUF file, or a folder's files about text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import blake3
import msgspec

from microkernel.errors import DataLoss, NotFound, PreconditionFailed

__all__ = ["Source", "Watched", "tokenizer_digest"]

PIECE = 1 << 20
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip


class Source(NamedTuple):
    """A file: where it is here, and what users call it. The name's ending says how it is read."""

    path: Path
    name: str


class Watched:
    """A source as it was when it was first looked at: its `size` in bytes and its `digest` (BLAKE3)."""

    def __init__(self, source: Source, taken: Callable[[int], None]) -> None:
        """Reads all of it, and tells `taken` how far it is. Raises `NotFound` or `DataLoss` where it cannot."""
        self.source = source
        self._seen = self._look()
        self.size = self._seen[0]
        self.digest = self._read(taken)

    def confirm(self, cause: Exception | None = None) -> None:
        """It is what it was. Raises `PreconditionFailed`, with what came of it as its cause, where it is not."""
        if self._look() != self._seen or self._read(lambda _: None) != self.digest:
            raise PreconditionFailed(
                f"{self.source.name} was changed while it was read", remedy="try again when nobody writes it"
            ) from cause

    def _look(self) -> tuple[int, int, int]:
        try:
            found = self.source.path.stat()
        except OSError as error:
            raise NotFound(f"{self.source.name} cannot be read: {error.strerror}") from error
        return found.st_size, found.st_mtime_ns, found.st_ino

    def _read(self, taken: Callable[[int], None]) -> bytes:
        digest = blake3.blake3()
        size = 0
        try:
            with self.source.path.open("rb", buffering=0) as file:
                while piece := file.read(PIECE):
                    digest.update(piece)
                    size += len(piece)
                    taken(size)
        except FileNotFoundError as error:
            raise NotFound(f"{self.source.name} cannot be read: {error.strerror}") from error
        except OSError as error:
            raise DataLoss(f"{self.source.name} cannot be read: {error.strerror}", remedy="check the disk") from error
        return digest.digest()


def tokenizer_digest(source: Path | Mapping[str, Any]) -> bytes:
    """BLAKE3 of what `open_tokenizer` makes a tokenizer and its chat template of. Raises `DataLoss`."""
    digest = blake3.blake3()
    if isinstance(source, Path):
        for name in TOKENIZER_FILES:
            try:
                content = (source / name).read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise DataLoss(f"{source / name} cannot be read: {error.strerror}") from error
            digest.update(f"{name} {len(content)}\n".encode())
            digest.update(content)
    else:
        kept = {key: value for key, value in source.items() if key.startswith("tokenizer.")}
        digest.update(msgspec.json.encode(kept, order="sorted"))
    return digest.digest()
