"""Where all threads stand, asked so that the interpreter does not lock up."""

from __future__ import annotations

import gc
import sys
import threading
from types import FrameType

__all__ = ["frames_of_threads"]

_asking = threading.Lock()


def frames_of_threads() -> dict[int, FrameType]:
    """The frame of each thread, by its ident.

    Python 3.11 makes frame objects for that under a lock which threads need to begin and end, and may collect garbage
    meanwhile. When a weak reference's callback then lets go of the interpreter, all threads wait for ever
    (https://github.com/python/cpython/issues/106883). So nothing is collected for these microseconds.
    """
    if sys.version_info >= (3, 12):
        return sys._current_frames()  # noqa: SLF001 - documented, for debuggers; there is no other way to ask
    with _asking:  # of two that ask at a time, one would find collection off, and the other leave it so
        collects = gc.isenabled()
        gc.disable()
        try:
            return sys._current_frames()  # noqa: SLF001 - as above
        finally:
            if collects:
                gc.enable()
