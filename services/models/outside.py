"""Models that are used where they lie, outside the store; their digests are remembered as long as the files stay."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

from microkernel.errors import NotFound
from services.models import disk
from services.models.messages import Model
from services.models.names import PathRef, is_name, name_for, parse_ref
from services.models.sources.path import look_at
from services.models.store import ModelStore
from services.models.transfer import Transfer

__all__ = ["OutsideModels"]

REMEMBERED = 256  # files


class OutsideModels:
    """Finds models by path; any number of threads may ask at once."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._digests: dict[tuple[str, int, int, int], str] = {}
        self._lock = threading.Lock()

    def find(self, ref: str) -> Model:
        """The model that `ref` names: one of the store by name or ref, or a file or folder where it lies.

        A path means what lies there now, even if a copy of it was pulled before. Reads the file once to hash it. Raises
        `NotFound`, `Invalid` for what is no model, `DataLoss` for a damaged one.
        """
        if is_name(ref):
            try:
                return self._store.find(ref)
            except NotFound:
                if not Path(ref).exists():
                    raise
        parsed = parse_ref(ref)
        if isinstance(parsed, PathRef) and parsed.path.exists():
            return self._outside(parsed.path)
        return self._store.find(str(parsed))

    def _outside(self, path: Path) -> Model:
        files, about = look_at(path)
        digests = {name: self._digest(file) for name, file in files.items()}
        listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
        one_file = about.format == "gguf"
        return Model(
            name=name_for(path.stem if one_file else path.resolve().name),
            ref=str(path),
            format=about.format,
            path=str(path),
            digest=next(iter(digests.values())) if one_file else hashlib.sha256(listing.encode()).hexdigest(),
            bytes=sum(file.stat().st_size for file in files.values()),
            pulled_at=max(file.stat().st_mtime for file in files.values()),
            architecture=about.architecture,
            license=about.license,
            kind=about.kind,
        )

    def _digest(self, path: Path) -> str:
        state = path.stat()
        key = (str(path), state.st_size, state.st_mtime_ns, state.st_ino)
        with self._lock:
            known = self._digests.get(key)
        if known is not None:
            return known
        digest = disk.digest_of(path, Transfer()).digest
        with self._lock:
            self._digests[key] = digest
            while len(self._digests) > REMEMBERED:
                self._digests.pop(next(iter(self._digests)))
        return digest
