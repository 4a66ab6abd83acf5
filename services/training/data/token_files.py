"""The prepared data's files: tokens, marks of what is learned, and where documents end.

`train.tokens` has uint16 or, where the vocabulary needs it, uint32, one document behind the other; `train.learned` a
bit for each, lowest first; `train.ends` an int64 for each document: the number of tokens up to its end. `held.*` are
the same of what is held out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from microkernel.errors import PreconditionFailed
from services.training.data.checked_files import CheckedFile, CheckedWriter, Written
from services.training.data.examples import Example

__all__ = ["PARTS", "Part", "TokenFiles", "TokenWriter", "Tokens"]

Part = Literal["train", "held"]
PARTS: tuple[Part, ...] = ("train", "held")
AT_ONCE = 1 << 18  # tokens that are written together


class Tokens(msgspec.Struct, frozen=True):
    """One part: how many documents and tokens it has, how many of them are learned, and its files."""

    documents: int
    tokens: int
    learned: int
    files: dict[str, Written]


class TokenWriter:
    """Writes one part, example by example."""

    def __init__(self, folder: Path, part: Part, vocabulary: int) -> None:
        self._dtype = token_type(vocabulary)
        self._files: dict[str, CheckedWriter] = {}
        try:
            for name in ("tokens", "learned", "ends"):
                self._files[name] = CheckedWriter(folder / f"{part}.{name}")
        except PreconditionFailed:
            self.close()
            raise
        self._tokens: list[NDArray[np.int64]] = []
        self._learned: list[NDArray[np.bool_]] = []
        self._ends: list[int] = []
        self._waiting = 0
        self._count = 0
        self.documents = 0
        self.tokens = 0

    def add(self, example: Example) -> None:
        """One more document. Raises `PreconditionFailed` where the disk is full."""
        self._tokens.append(example.tokens)
        self._learned.append(example.learned)
        self.documents += 1
        self.tokens += len(example.tokens)
        self._ends.append(self.tokens)
        self._waiting += len(example.tokens)
        if self._waiting >= AT_ONCE:
            self._flush()

    def finish(self) -> Tokens:
        """All of it is on the disk."""
        self._flush(last=True)
        files = {name: file.finish() for name, file in self._files.items()}
        return Tokens(self.documents, self.tokens, self._count, files)

    def close(self) -> None:
        """Nothing more is written, whether it is whole or not."""
        for file in self._files.values():
            file.close()

    def _flush(self, *, last: bool = False) -> None:
        if self._tokens:
            self._files["tokens"].add(np.concatenate(self._tokens).astype(self._dtype).tobytes())
            self._files["ends"].add(np.array(self._ends, dtype="<i8").tobytes())
        self._tokens, self._ends, self._waiting = [], [], 0
        learned = np.concatenate([*self._learned, np.zeros(0, dtype=np.bool_)])
        whole = len(learned) if last else len(learned) - len(learned) % 8
        self._count += int(np.count_nonzero(learned[:whole]))
        self._files["learned"].add(np.packbits(learned[:whole], bitorder="little").tobytes())
        self._learned = [learned[whole:]]


class TokenFiles:
    """One part, mapped. Its arrays may be read where `check` was called for them."""

    def __init__(self, folder: Path, part: Part, found: Tokens, vocabulary: int) -> None:
        """Raises `DataLoss` for a file that is missing or cut, or documents that do not end where they did."""

        def opened(name: str, dtype: str) -> CheckedFile:
            return CheckedFile(folder / f"{part}.{name}", found.files[name], np.dtype(dtype))

        self._tokens = opened("tokens", token_type(vocabulary))
        self._learned = opened("learned", "u1")
        ends = opened("ends", "<i8")
        ends.check_all()
        self.tokens = self._tokens.array
        self.learned: NDArray[np.uint8] = self._learned.array.view(np.uint8)
        self.ends: NDArray[np.int64] = ends.array.view(np.int64)

    def check(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        """The tokens from each of `starts` to its `stops`, and their marks, are what was written. Raises `DataLoss`."""
        self._tokens.check(starts, stops)
        self._learned.check(starts >> 3, (stops + 7) >> 3)

    def check_all(self) -> None:
        """All of them are: reads everything. Raises `DataLoss`."""
        self._tokens.check_all()
        self._learned.check_all()

    def marks(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Which of the tokens from `start` to `stop` are learned. Raises `DataLoss`."""
        first, last = start >> 3, (stop + 7) >> 3
        self._learned.check(np.array([first]), np.array([last]))
        bits = np.unpackbits(self.learned[first:last], bitorder="little")
        return bits[start & 7 :][: stop - start].view(np.bool_)


def token_type(vocabulary: int) -> str:
    """The type of tokens in the files."""
    return "<u2" if vocabulary <= 1 << 16 else "<u4"
