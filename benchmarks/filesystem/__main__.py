"""`python -m benchmarks.filesystem`: what files of the tree cost, beside plain ones, and what search does."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.filesystem.lines import NAMES, wanted
from benchmarks.judged import measure, parsed, parser_of

PACKAGES = ("microkernel", "uvloop", "blake3", "xxhash")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    args = parsed(parser_of("filesystem", __doc__, NAMES), arguments, NAMES)
    return measure("filesystem", wanted(args.only), PACKAGES, args, arguments)[1]


if __name__ == "__main__":
    sys.exit(main())
