"""`python -m benchmarks.embedding`: its lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.embedding.lines import NAMES, wanted
from benchmarks.judged import measure, parsed, parser_of

PACKAGES = ("microkernel", "tokenizers", "torch")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    args = parsed(parser_of("embedding", __doc__, NAMES), arguments, NAMES)
    return measure("embedding", wanted(args.only), PACKAGES, args, arguments)[1]


if __name__ == "__main__":
    sys.exit(main())
