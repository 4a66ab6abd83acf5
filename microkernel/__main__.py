"""`python -m microkernel …` is the same as `mk …`."""

from __future__ import annotations

import sys

from microkernel.cli import main

if __name__ == "__main__":
    sys.exit(main())
