"""`python -m benchmarks.overload`: arguments, the scenarios one after the other, and what is printed."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.command_line import INTERRUPTED, command_of, sigterm_interrupts, tell, write_json
from benchmarks.machine import Machine, this_machine
from benchmarks.messages.goals import render_outcomes
from benchmarks.messages.process import Broken
from benchmarks.overload.culprits import REPLY_FLOODS, SLOW_READERS
from benchmarks.overload.rush import RUSH, RUSH_ON_THE_LOOP
from benchmarks.overload.story import Scenario, Stage, Story, render_figures
from benchmarks.versions import package_versions

PACKAGES = ("microkernel", "aiohttp", "msgspec", "uvloop")
SCENARIOS = (SLOW_READERS, REPLY_FLOODS, RUSH, RUSH_ON_THE_LOOP)
NOTE = """\
Each scenario is told once: run it again to see what was noise. See docs/reference/benchmarks.md for what it does."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` writes. `broken` says why a scenario did not come to its end."""

    command: str
    quick: bool
    machine: Machine
    versions: dict[str, str]
    stories: list[Story]
    broken: dict[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    args = _arguments(arguments)
    wanted = [each for each in SCENARIOS if not args.only or any(word in each.name for word in args.only)]
    machine = this_machine()
    for line in machine.lines():
        print(line)
    versions = package_versions(*PACKAGES)
    print("versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()), flush=True)
    with sigterm_interrupts():
        stories, broken, complete = _run_all(wanted, quick=args.quick)
    _print(stories, broken)
    if args.json:
        result = Result(
            command=command_of("overload", arguments),
            quick=args.quick,
            machine=machine,
            versions=versions,
            stories=stories,
            broken=broken,
        )
        write_json(args.json, result)
    if not complete:
        return INTERRUPTED
    return 1 if broken else 0


def _run_all(scenarios: Sequence[Scenario], *, quick: bool) -> tuple[list[Story], dict[str, str], bool]:
    """The stories that came to their end, why others did not, and whether all were tried."""
    stories: list[Story] = []
    broken: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="overload-") as logs:
        for each in scenarios:
            tell(f"{each.name}: {each.about}")
            try:
                stories.append(_run(each, Path(logs) / "log", quick=quick))
            except Broken as error:
                broken[each.name] = str(error)
                tell(f"  broken: {error}")
            except KeyboardInterrupt:
                tell(f"interrupted in {each.name}")
                return stories, broken, False
    return stories, broken, True


def _run(scenario: Scenario, log: Path, *, quick: bool) -> Story:
    story = Story(scenario.name)
    stage = Stage(log, tell)
    try:
        scenario.run(stage, story, quick)
    finally:
        stage.close()
    return story


def _print(stories: Sequence[Story], broken: dict[str, str]) -> None:
    print("\n" + render_figures(stories))
    print(f"\ngoals\n{render_outcomes([goal for story in stories for goal in story.goals])}\n\n{NOTE}")
    for name, why in broken.items():
        print(f"{name} did not come to its end: {why}")


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = ", ".join(each.name for each in SCENARIOS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer clients and a short rush: to see that it works")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help=f"only those with this in their name: {names}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    args = parser.parse_args(arguments)
    for word in args.only:
        if not any(word in each.name for each in SCENARIOS):
            parser.error(f"no scenario has '{word}' in its name: {names}")
    return args


if __name__ == "__main__":
    sys.exit(main())
