"""`python -m benchmarks.cluster`: arguments, which lines are measured, and what is printed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.cluster.lines import NAMES, wanted
from benchmarks.judged import measure, parsed, parser_of

PACKAGES = ("microkernel", "aiohttp", "uvloop")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    args = parsed(parser_of("cluster", __doc__, NAMES), arguments, NAMES)
    return measure("cluster", wanted(args.only), PACKAGES, args, arguments)[1]


if __name__ == "__main__":
    sys.exit(main())
