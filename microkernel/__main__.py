"""`python -m microkernel …` is the same as `mk …`: one command, and the end of its process."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import NoReturn

from microkernel.cli import main

__all__ = ["command"]


def command() -> NoReturn:
    """Run one command; the process ends with its exit code, whatever a thread that was left is still busy with."""
    code = 1  # of an error that is shown with its traceback

    def leave() -> None:
        if all(thread is threading.current_thread() for thread in threading.enumerate()):
            return
        # An interpreter that ends unwinds a daemon thread as soon as that asks for the GIL; one that is inside of
        # torch takes the whole process along with SIGABRT, as C++ ends on what unwinds through a `noexcept`.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(leave)  # before anybody else, so that it runs last
    code = main()
    sys.exit(code)


if __name__ == "__main__":
    command()
