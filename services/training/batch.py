"""A batch: rows of tokens, what is to be learned from each, and where documents begin within a row."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["NOT_LEARNED", "Batch"]

NOT_LEARNED = -100
"""The target of a token behind which nothing is learned: torch's own mark for it."""


class Batch(NamedTuple):
    """All int64 [rows, length].

    `targets` is the token that follows each, or `NOT_LEARNED`. `positions` count from 0 in each document of a row.
    `documents` number the documents of a row from 0: a token attends to those of its own, up to itself.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    positions: NDArray[np.int64]
    documents: NDArray[np.int64]
