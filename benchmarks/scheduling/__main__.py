"""`python -m benchmarks.scheduling`: arguments, which lines are measured, and what is printed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.judged import LineResult, measure, parsed, parser_of
from benchmarks.machine import this_machine
from benchmarks.scheduling import decisions
from benchmarks.scheduling.line import Line
from benchmarks.scheduling.lines import NAMES, wanted

PACKAGES = ("microkernel", "uvloop", "torch")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = parser_of("scheduling", __doc__, NAMES)
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help=f"draw the curves of the line `{decisions.CURVE.name}` there, as SVG"
    )
    args = parsed(parser, arguments, NAMES)
    lines = wanted(args.only)
    results, status = measure("scheduling", lines, PACKAGES, args, arguments)
    if args.plot:
        _plot(lines, results, args.plot, f"What a decision costs, {this_machine().cpu}")
    return status


def _plot(lines: Sequence[Line], results: Sequence[LineResult], target: Path, title: str) -> None:
    for line, each in zip(lines, results, strict=False):
        if line.name == decisions.CURVE.name and any(map(any, each.rounds)):
            target.write_text(decisions.picture(each.rows(line), title), encoding="utf-8")
            print(f"the curves are in {target}")
            return
    print("no curves were measured, so no picture of them was drawn")


if __name__ == "__main__":
    sys.exit(main())
