"""`mk jobs curve`: the losses of a job as a chart in the terminal, as an SVG picture, or as a file of all numbers."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microkernel.cli.curve_svg import curve_svg
from microkernel.cli.job_screen import Known
from microkernel.cli.output import clean, plain, print_json, wants_json, write
from microkernel.cli.text_chart import chart
from microkernel.errors import Invalid, NotFound

if TYPE_CHECKING:
    from microkernel.wire.client import System

__all__ = ["add", "curve_csv", "run"]

SIZE = (72, 16)  # characters and lines of the chart
DRAWN = 2000  # points of a picture: more than it has pixels
WHOLE = 1_000_000  # points of a file
COLUMNS = ("step", "at", "loss", "evaluation_loss", "rate", "norm", "tokens", "seconds", "event")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--svg", metavar="FILE", help="draw it as a picture; - is stdout")
    parser.add_argument("--csv", metavar="FILE", help="write all numbers as comma-separated values; - is stdout")


async def run(args: argparse.Namespace, system: System) -> int:
    """Fetch the curve, and show or write it."""
    most = WHOLE if args.csv or wants_json(args) else DRAWN
    job = plain(await system.call("training.show", job=args.job))
    points = plain(await system.call("training.curve", job=args.job, most=most))
    if args.svg:
        losses = [point for point in points if point["loss"] is not None]
        thinned = (
            points if len(losses) <= DRAWN else plain(await system.call("training.curve", job=args.job, most=DRAWN))
        )
        _write(args.svg, curve_svg(_title(job), thinned))
    if args.csv:
        _write(args.csv, curve_csv(points))
    if args.svg or args.csv:
        return 0
    if wants_json(args):
        print_json(points)
        return 0
    known = Known(job)
    known.take(points)
    lines = chart(known.losses, known.held_out, *SIZE)
    if not lines:
        raise NotFound(f"job '{args.job}' has no step behind it yet", remedy=f"mk jobs watch {args.job}")
    for line in (_title(job), *lines, *(f"step {step}: {event}" for step, event in known.events)):
        write(clean(line))
    return 0


def curve_csv(points: Sequence[dict[str, Any]]) -> str:
    """A line a point, below one with the names of the columns; what was not measured is empty."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    lines.writerows([point[column] for column in COLUMNS] for point in points)
    return text.getvalue()


def _title(job: dict[str, Any]) -> str:
    base = job["base"] or "from scratch"
    return f"{job['job']}: {job['method']}, {base}, {job['state']}"


def _write(name: str, text: str) -> None:
    if name == "-":
        sys.stdout.write(text)
        return
    try:
        Path(name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise Invalid(f"{name} cannot be written: {error.strerror}") from error
