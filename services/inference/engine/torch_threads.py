"""How many threads torch's operations have while a model has its turn, on a thread that others have turns on; hot."""

from __future__ import annotations

from types import TracebackType

import torch

__all__ = ["TorchThreads"]


class TorchThreads:
    """A model's own number. Within the block it is as the model left it last; after it, as it was found.

    Kernels have torch use one thread, because OpenMP's would spin beside theirs. Whoever has the next turn is to have
    all the threads that the device gives. Where that is another number than before, the model finds its own anew.
    """

    def __init__(self) -> None:
        self._ours: int | None = None
        self._found = 0

    def __enter__(self) -> None:
        found = torch.get_num_threads()
        if found != self._found:
            self._ours, self._found = None, found
        if self._ours is not None:
            torch.set_num_threads(self._ours)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ours = torch.get_num_threads()
        torch.set_num_threads(self._found)
