"""`python -m benchmarks.engine`: arguments, which lines are measured, and what is printed."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.command_line import INTERRUPTED, check_words, command_of, count, sigterm_interrupts, tell, write_json
from benchmarks.default_model import stored_model
from benchmarks.engine import streams
from benchmarks.engine.findings import Finding, findings, render
from benchmarks.engine.line import Group, Taken
from benchmarks.engine.lines import NAMES, wanted
from benchmarks.engine.stage import Stage
from benchmarks.first_token.contender import Broken
from benchmarks.machine import Machine, this_machine
from microkernel.root import default_root

THREADS = 2
NOTE = """\
A ratio says how many times better ours is: below 1 it loses. Ratios are taken within a round; shown are their median
and, in brackets, their quartiles; where nobody is compared with, the quartiles are those of ours. A goal is met where
the median meets it. Decoding is measured while all streams run: what the prompts cost is a line of its own."""


class GroupResult(msgspec.Struct, frozen=True, kw_only=True):
    """Some lines. `taken` holds every number as measured, in SI units; `broken` is why there are none."""

    about: str
    lines: list[str]
    taken: Taken | None
    broken: str
    findings: list[Finding]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` writes."""

    command: str
    model: str
    threads: int
    quick: bool
    machine: Machine
    groups: list[GroupResult]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    args = _arguments(arguments)
    machine = this_machine()
    for each in machine.lines():
        print(each)
    with sigterm_interrupts():
        model = args.model or stored_model()
        print(f"{model.name}, {args.threads} threads for each", flush=True)
        with tempfile.TemporaryDirectory(prefix="engine-") as scratch:
            stage = Stage(
                model,
                threads=args.threads,
                rounds=args.rounds,
                quick=args.quick,
                scratch=Path(scratch),
                cache=default_root() / "benchmarks",
                tell=tell,
            )
            groups = wanted(args.only)
            results = _run_all(stage, groups)
    _print(groups, results)
    if args.plot:
        _plot(results, args.plot, f"{model.stem}, {args.threads} threads of {machine.cpu}")
    if args.json:
        found = Result(
            command=command_of("engine", arguments),
            model=model.name,
            threads=args.threads,
            quick=args.quick,
            machine=machine,
            groups=results,
        )
        write_json(args.json, found)
    if stage.interrupted:
        return INTERRUPTED
    return 1 if any(each.taken is None or each.taken.ours in each.taken.skipped for each in results) else 0


def _run_all(stage: Stage, groups: Sequence[Group]) -> list[GroupResult]:
    """Group by group; interrupted, what there is so far."""
    results: list[GroupResult] = []
    for group in groups:
        tell(f"{group.about}: {', '.join(line.name for line in group.lines)}")
        results.append(_run(stage, group))
        if stage.interrupted:
            break
    return results


def _run(stage: Stage, group: Group) -> GroupResult:
    taken, broken = None, ""
    found: list[Finding] = []
    try:
        taken = group.take(stage, group.lines)
    except KeyboardInterrupt:
        stage.interrupted, broken = True, "interrupted"
    except (Broken, OSError) as error:  # a file may not be written, too
        broken = str(error)
        tell(f"broken: {error}")
    if taken is not None:
        for line in group.lines:
            found += findings(line, taken.rows(line), taken.ours)
    names = [line.name for line in group.lines]
    return GroupResult(about=group.about, lines=names, taken=taken, broken=broken, findings=found)


def _print(groups: Sequence[Group], results: Sequence[GroupResult]) -> None:
    takens = [each.taken for each in results if each.taken is not None]
    versions = {name: version for taken in takens for name, version in taken.versions.items()}
    print("versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    print("\nwho takes part:")
    for name, about in {name: about for taken in takens for name, about in taken.contenders.items()}.items():
        print(f"  {name}: {about}")
    shown: list[Finding] = []
    tables: list[str] = []
    for group, each in zip(groups, results, strict=False):  # who is interrupted has fewer results
        own = [line for line in group.lines if line.show is not None]
        shown += [] if own else each.findings
        tables += [line.show(rows) for line in own if line.show and each.taken and (rows := each.taken.rows(line))]
    print(f"\nrounds: {max((len(taken.rounds) for taken in takens), default=0)}")
    if shown:
        print(render(shown))
    for table in tables:
        print(f"\n{table}")
    print(f"\n{NOTE}")
    for each in results:
        if said := _said(each):
            print(f"\n{each.about}:")
        for line in said:
            print(f"  {line}")


def _said(result: GroupResult) -> list[str]:
    """What else there is to know of some lines."""
    if result.taken is None:
        return [f"nothing was measured: {result.broken}"]
    return [*(f"{name} was left out: {why}" for name, why in result.taken.skipped.items()), *result.taken.notes]


def _plot(results: Sequence[GroupResult], target: Path, title: str) -> None:
    for each in results:
        if streams.NAME in each.lines and each.taken is not None and any(map(any, each.taken.rounds)):
            target.write_text(streams.picture(each.taken, title), encoding="utf-8")
            print(f"the curves are in {target}")
            return
    print("no curves were measured, so no picture of them was drawn")


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--model", type=Path, metavar="GGUF", help="a file (default: the default model, pulled once)")
    parser.add_argument("--rounds", type=count, help="how often everything is measured (default: 5; quick: 1)")
    parser.add_argument("--threads", type=count, default=THREADS, help="of each contender (default: 2)")
    parser.add_argument("--quick", action="store_true", help="few tokens and one round: to see that it works")
    parser.add_argument(
        "--only",
        action="append",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"only these lines, with commas or spaces between: {', '.join(NAMES)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves of the line `streams` there, as SVG")
    args = parser.parse_args(arguments)
    args.only = [word for words in args.only for each in words for word in each.split(",") if word]
    check_words(parser, args.only, NAMES)
    if args.model is not None:
        args.model = args.model.expanduser().absolute()
        if not args.model.is_file():
            parser.error(f"there is no file {args.model}")
    args.rounds = args.rounds or (1 if args.quick else 5)
    return args


if __name__ == "__main__":
    sys.exit(main())
