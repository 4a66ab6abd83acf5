"""Lines with goals: how they are run, what is written of them, and the table that people see."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.command_line import (
    INTERRUPTED,
    check_words,
    command_of,
    count,
    run_lines,
    sigterm_interrupts,
    tell,
    write_json,
)
from benchmarks.engine.findings import Finding, findings, render
from benchmarks.machine import Machine, this_machine
from benchmarks.measure import Round
from benchmarks.messages.rounds import Rounds
from benchmarks.scheduling.line import Line
from benchmarks.table import Row, rows_of
from benchmarks.versions import package_versions

__all__ = ["LineResult", "measure", "parsed", "parser_of"]

NOTE = """\
A ratio says how many times better ours is: below 1 it loses. Ratios are taken within a round; shown are their median
and, in brackets, their quartiles; where nobody is compared with, the quartiles are those of ours. A goal is met where
the median meets it. See docs/reference/benchmarks.md for what each line means, and for what is unfair in it."""


class LineResult(msgspec.Struct, frozen=True, kw_only=True):
    """One line. `rounds` holds every number as measured, in SI units; of the contenders the first is ours."""

    name: str
    contenders: dict[str, str]
    commands: dict[str, list[str]]
    skipped: dict[str, str]
    rounds: list[Round]
    findings: list[Finding]

    @property
    def ours(self) -> str:
        """The name of ours."""
        return next(iter(self.contenders))

    def rows(self, line: Line) -> list[Row]:
        """Those of the table."""
        others = [name for name in self.contenders if name != self.ours]
        return rows_of(self.rounds, list(line.measures.values()), self.ours, others)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` writes."""

    command: str
    quick: bool
    machine: Machine
    versions: dict[str, str]
    lines: list[LineResult]


def parser_of(name: str, about: str | None, names: Sequence[str]) -> argparse.ArgumentParser:
    """The arguments that every such benchmark has."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
    parser.add_argument("--rounds", type=count, help="how often everything is measured (default: 5; quick: 1)")
    parser.add_argument("--quick", action="store_true", help="moments and small sizes: to see that it works")
    parser.add_argument("--alone", action="store_true", help="ours without its peers")
    parser.add_argument(
        "--only",
        action="append",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"only this line, or those with this in their name: {', '.join(names)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    return parser


def parsed(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, names: Sequence[str]
) -> argparse.Namespace:
    """What was said, with what was not."""
    args = parser.parse_args(arguments)
    args.only = [word for words in args.only for word in words]
    check_words(parser, args.only, names)
    args.rounds = args.rounds or (1 if args.quick else 5)
    return args


def measure(
    name: str, lines: Sequence[Line], packages: Sequence[str], args: argparse.Namespace, arguments: Sequence[str] | None
) -> tuple[list[LineResult], int]:
    """Run lines and show what was found; the results, and the exit status."""
    if args.alone:
        lines = [msgspec.structs.replace(line, contenders=line.contenders[:1]) for line in lines]
    machine = this_machine()
    for each in machine.lines():
        print(each)
    others = {package for line in lines for each in line.contenders for package in each.packages}
    versions = package_versions(*packages, *sorted(others))
    print("versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()), flush=True)
    with sigterm_interrupts():
        results, complete = run_lines(lines, name, lambda line, logs: _run(line, args.rounds, logs, quick=args.quick))
    _show(lines, results)
    if args.json:
        found = Result(
            command=command_of(name, arguments), quick=args.quick, machine=machine, versions=versions, lines=results
        )
        write_json(args.json, found)
    if not complete:
        return results, INTERRUPTED
    return results, 1 if any(each.ours in each.skipped for each in results) else 0


def _run(line: Line, count: int, logs: Path, *, quick: bool) -> tuple[LineResult, bool]:
    """The rounds of a line; those that are complete, and whether that is all of them."""
    skipped = {each.name: why for each in line.contenders if (why := each.missing())}
    present = [each for each in line.contenders if each.name not in skipped]
    rounds = Rounds(line, present, logs, quick=quick, tell=tell)
    complete = True
    try:
        if line.prepare is not None:
            line.prepare()
        rounds.run(count)
    except KeyboardInterrupt:
        complete = False
    result = LineResult(
        name=line.name,
        contenders={each.name: each.about for each in line.contenders},
        commands={each.name: [shlex.join(command) for command in each.commands()] for each in present},
        skipped={**skipped, **rounds.left},
        rounds=rounds.found,
        findings=[],
    )
    found = findings(line.judged(), result.rows(line), result.ours)
    return msgspec.structs.replace(result, findings=found), complete


def _show(lines: Sequence[Line], results: Sequence[LineResult]) -> None:
    """Who took part, what was found, and what was left out."""
    print("\nwho takes part beside us:")
    for name, about in {
        name: about for each in results for name, about in each.contenders.items() if name != each.ours
    }.items():
        print(f"  {name}: {about}")
    print("\nours:")
    for each in results:
        print(f"  {each.name}: {each.contenders[each.ours]}")
    shown: list[Finding] = []
    tables: list[str] = []
    for line, each in zip(lines, results, strict=False):  # who is interrupted has fewer results
        if line.show is None:
            shown += each.findings
        elif each.rounds:
            tables.append(line.show(each.rows(line)))
    print(f"\nrounds: {max((len(each.rounds) for each in results), default=0)}")
    if shown:
        print(render(shown))
    for table in tables:
        print(f"\n{table}")
    print(f"\n{NOTE}")
    for each in results:
        for name, why in each.skipped.items():
            print(f"{each.name}: {name} was left out: {why}")
