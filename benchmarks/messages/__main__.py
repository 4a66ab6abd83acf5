"""`python -m benchmarks.messages`: arguments, who takes part, and what is printed."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.command_line import (
    INTERRUPTED,
    check_words,
    command_of,
    count,
    meant,
    run_lines,
    sigterm_interrupts,
    tell,
    write_json,
)
from benchmarks.machine import Machine, this_machine
from benchmarks.measure import Round
from benchmarks.messages.goals import Outcome, outcomes, render_outcomes
from benchmarks.messages.line import Line
from benchmarks.messages.lines import LINES
from benchmarks.messages.rounds import Rounds
from benchmarks.table import Row, render, rows_of
from benchmarks.versions import package_versions

PACKAGES = ("microkernel", "aiohttp", "msgspec", "uvloop")
NOTE = """\
A ratio says how many times better microkernel is: below 1 it loses. Ratios are taken within a round; win and loss are
said where the middle half of the rounds agrees; a goal is met where the median meets it. See
docs/reference/benchmarks.md for what each line means, and for what is unfair in it."""


class LineResult(msgspec.Struct, frozen=True, kw_only=True):
    """One line. `rounds` holds every number as measured: seconds, things a second, bytes."""

    name: str
    contenders: dict[str, str]
    commands: dict[str, list[str]]
    skipped: dict[str, str]
    rounds: list[Round]
    rows: list[Row]
    goals: list[Outcome]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` writes."""

    command: str
    quick: bool
    machine: Machine
    versions: dict[str, str]
    lines: list[LineResult]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    args = _arguments(arguments)
    lines = _wanted(args.only)
    machine = this_machine()
    for each in machine.lines():
        print(each)
    packages = {package for line in lines for each in line.contenders for package in each.packages.values()}
    versions = package_versions(*PACKAGES, *sorted(packages))
    print("versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()), flush=True)
    with sigterm_interrupts():
        results, complete = run_lines(
            lines, "messages", lambda line, logs: _run(line, args.rounds, logs, quick=args.quick)
        )
    _print(results)
    if args.json:
        found = Result(
            command=command_of("messages", arguments),
            quick=args.quick,
            machine=machine,
            versions=versions,
            lines=results,
        )
        write_json(args.json, found)
    if not complete:
        return INTERRUPTED
    return 1 if any(_ours_broke(each) for each in results) else 0


def _run(line: Line, count: int, logs: Path, *, quick: bool) -> tuple[LineResult, bool]:
    """The rounds of a line; those that are complete, and whether that is all of them."""
    skipped = {each.name: why for each in line.contenders if (why := each.missing())}
    present = [each for each in line.contenders if each.name not in skipped]
    ours = line.contenders[0].name
    rounds = Rounds(line, present, logs, quick=quick, tell=tell)
    complete = True
    if ours not in skipped:
        try:
            rounds.run(count)
        except KeyboardInterrupt:
            complete = False
    others = [each.name for each in present if each.name != ours]
    rows = rows_of(rounds.found, list(line.measures.values()), ours, others)
    result = LineResult(
        name=line.name,
        contenders={each.name: each.about for each in line.contenders},
        commands={each.name: [shlex.join(command) for command in each.commands()] for each in present},
        skipped={**skipped, **rounds.left},
        rounds=rounds.found,
        rows=rows,
        goals=outcomes(line, rows, ours),
    )
    return result, complete


def _print(results: Sequence[LineResult]) -> None:
    told = {name: about for each in results for name, about in each.contenders.items() if name != _ours(each)}
    commands = {command: None for each in results for some in each.commands.values() for command in some}
    print("\nwho takes part beside us:")
    for name, about in told.items():
        print(f"  {name}: {about}")
    print("\nours, and the processes of all:")
    for each in results:
        print(f"  {each.name}: {each.contenders[_ours(each)]}")
    for command in commands:
        print(f"  {command}")
    print("\n" + render([row for each in results for row in each.rows]))
    print(f"\ngoals\n{render_outcomes([goal for each in results for goal in each.goals])}\n\n{NOTE}")
    for each in results:
        for name, why in each.skipped.items():
            print(f"{each.name}: {name} was left out: {why}")


def _ours(result: LineResult) -> str:
    return next(iter(result.contenders))


def _ours_broke(result: LineResult) -> bool:
    """Whether ours was there and did not come to its end."""
    ours = _ours(result)
    return ours in result.skipped and ours in result.commands


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.messages", description=__doc__)
    parser.add_argument("--rounds", type=count, help="how often everything is measured (default: 7; quick: 2)")
    parser.add_argument("--quick", action="store_true", help="shorter and with fewer clients: to see that it works")
    parser.add_argument(
        "--only",
        action="append",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"only this line, or those with this in their name: {', '.join(line.name for line in LINES)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    args = parser.parse_args(arguments)
    args.only = [word for words in args.only for word in words]
    check_words(parser, args.only, [line.name for line in LINES])
    args.rounds = args.rounds or (2 if args.quick else 7)
    return args


def _wanted(only: Sequence[str]) -> list[Line]:
    """The lines that are named; a word that is no line's name stands for all that have it in theirs."""
    names = {line.name for line in LINES}
    return [line for line in LINES if meant(only, line.name, names)]


if __name__ == "__main__":
    sys.exit(main())
