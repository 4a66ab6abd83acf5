"""`python -m benchmarks.first_token`: arguments, who takes part, and what is printed."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.command_line import INTERRUPTED, count, tell, write_json
from benchmarks.default_model import stored_model
from benchmarks.first_token.contender import Broken, Contender
from benchmarks.first_token.llama_cpp_peer import llama_cpp, requantise
from benchmarks.first_token.measures import measures, tasks
from benchmarks.first_token.node import Node
from benchmarks.first_token.own_engine import own_engine
from benchmarks.first_token.prompts import Prompts
from benchmarks.first_token.rounds import Rounds
from benchmarks.first_token.transformers_peer import transformers
from benchmarks.machine import Machine, this_machine
from benchmarks.measure import Round
from benchmarks.table import Row, render, rows_of

NOTE = """\
A ratio says how many times better microkernel is: below 1 it loses. Ratios are taken within a round; win and loss are
said where the middle half of the rounds agrees. See docs/reference/benchmarks.md for what each line means, and for what
is unfair in it."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` writes. `rounds` holds every number as measured: seconds, tokens a second, bytes."""

    command: str
    model: str
    quick: bool
    machine: Machine
    versions: dict[str, str]
    commands: dict[str, str]
    skipped: dict[str, str]
    notes: list[str]
    rounds: list[Round]
    rows: list[Row]


def main() -> int:
    """Run the benchmark."""
    args = _arguments()
    model = args.model or stored_model()
    machine = this_machine()
    _print_lines(machine.lines())
    with tempfile.TemporaryDirectory(prefix="first-token-") as scratch:
        everybody = _contenders(model, machine.cores, Path(scratch))
        skipped = {each.name: why for each in everybody if (why := each.missing())}
        present = [each for each in everybody if each.name not in skipped and _wanted(each, args.only)]
        versions = {name: version for each in present for name, version in each.versions().items()}
        print("versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
        commands = {each.name: shlex.join(each.command) for each in present}
        for each in present:
            print(f"\n{each.name}: {each.about}\n  {commands[each.name]}")
        for name, why in skipped.items():
            print(f"\n{name}: skipped, {why}")
        prompts = Prompts(model)
        rounds = Rounds(
            present,
            prompts,
            lambda: tasks(prompts, quick=args.quick),
            first_start=not args.quick,
            tell=tell,
        )
        found = _run(rounds, args.rounds)
        ours, *others = (each.name for each in present)
        rows = rows_of(found, measures(tasks(prompts, quick=args.quick)), ours, others)
    if not found:
        return INTERRUPTED
    skipped |= rounds.left
    print(f"\n{len(found)} of {args.rounds} rounds\n{render(rows)}\n\n{NOTE}")
    _print_lines(f"{name} was left out: {why}" for name, why in rounds.left.items())
    _print_lines(rounds.notes)
    if args.json:
        result = Result(
            command=shlex.join([sys.executable, "-m", "benchmarks.first_token", *sys.argv[1:]]),
            model=model.name,
            quick=args.quick,
            machine=machine,
            versions=versions,
            commands=commands,
            skipped=skipped,
            notes=rounds.notes,
            rounds=found,
            rows=rows,
        )
        write_json(args.json, result)
    return 1 if ours in rounds.left else 0


def _run(rounds: Rounds, count: int) -> list[Round]:
    """The rounds; told to stop, those that are complete."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no contender is left behind
    found: list[Round] = []
    try:
        for number in range(count):
            found.append(rounds.run(number))  # noqa: PERF401 - complete rounds stay when a later one is interrupted
    except KeyboardInterrupt:
        tell(f"interrupted in round {len(found) + 1}")
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_token", description=__doc__)
    parser.add_argument("--model", type=Path, metavar="GGUF", help="a file (default: the default model, pulled once)")
    parser.add_argument("--rounds", type=count, help="how often everything is measured (default: 7; quick: 2)")
    parser.add_argument("--quick", action="store_true", help="shorter answers and fewer samples: to see that it works")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="only peers with this in their name"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    args = parser.parse_args()
    if args.model is not None:
        args.model = args.model.expanduser().absolute()
        if not args.model.is_file():
            parser.error(f"there is no file {args.model}")
    args.rounds = args.rounds or (2 if args.quick else 7)
    return args


def _contenders(model: Path, cores: int, scratch: Path) -> list[Contender]:
    """Ours first: the others are compared with it."""
    q4_0 = scratch / f"{model.stem}.requantised-Q4_0.gguf"
    as_is = llama_cpp(model, cores, scratch / "llama.log", weights="same file")
    contenders: list[Contender] = [
        Node(model, scratch / "http"),
        Node(model, scratch / "websocket", door="websocket"),
        own_engine(model, cores, scratch / "engine.log"),
        as_is,
    ]
    if as_is.missing() is None:
        requantise(model, q4_0)
        contenders.append(llama_cpp(q4_0, cores, scratch / "llama-q4_0.log", weights="as Q4_0"))
    contenders.append(transformers(model, cores, scratch / "transformers.log"))
    return contenders


def _wanted(contender: Contender, only: Sequence[str]) -> bool:
    return contender.name == "microkernel" or not only or any(word in contender.name for word in only)


def _print_lines(lines: Sequence[str]) -> None:
    for line in lines:
        print(line)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Broken as error:
        sys.exit(f"first_token: {error}")
