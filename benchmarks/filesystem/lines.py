"""All lines of the benchmark, with the goals that we have set ourselves."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.command_line import meant
from benchmarks.default_model import store_both
from benchmarks.measure import Measure
from benchmarks.messages.line import Running, ask
from benchmarks.scheduling.line import Contender, Goal, Line, asked

__all__ = ["LINES", "NAMES", "wanted"]

HERE = "benchmarks.filesystem"
OURS = "microkernel"

COREUTILS = Contender("coreutils", "`cp` and `sync` of the file; `cat` to nowhere", f"{HERE}.large:Coreutils")
PLAIN = Contender("files", "a file each: written, synced, closed", f"{HERE}.small:PlainFiles")
WHOLE = Contender(
    "whole files",
    "beside, synced, renamed, the folder synced: there as a whole or not at all",
    f"{HERE}.small:WholeFiles",
)
MADE_AT_ONCE = 100_000  # files that are made before the next answer is due
OPERATIONS = {
    "stat": "stat",
    "list": "list of 100 files",
    "page": "page of 50 of a large folder",
    "rename": "rename twice",
}


def _names(running: Running, quick: bool) -> dict[str, float]:
    few, many = (5_100, 6_000) if quick else (10_000, 1_000_000)
    for count in (few, many):
        for first in range(0, count, MADE_AT_ONCE):
            running.client.ask("make", count=count, first=first, stop=min(count, first + MADE_AT_ONCE))
    found = {}
    times = 10 if quick else 300
    ours = {count: running.client.ask("ask", count=count, times=times) for count in (few, many)}
    for key in OPERATIONS:
        found[f"{key}/few"] = ours[few][key]
        found[f"{key}/many"] = ours[many][key]
        found[f"{key}/longer"] = ours[many][key] / ours[few][key]
    return found


LINES: tuple[Line, ...] = (
    Line(
        name="large",
        measures={
            "write": Measure("1 GiB written, with checksums, synced", "s"),
            "read": Measure("1 GiB read, each part compared", "s"),
            "memory": Measure("memory more meanwhile", "MiB", scale=1 / (1 << 20)),
        },
        contenders=(
            Contender(OURS, "filesystem.write_stream and filesystem.read of a node", f"{HERE}.large:LargeFiles"),
            COREUTILS,
        ),
        question=asked("large", {"mib": 1024}, {"mib": 8}),
        goals=(Goal("write", 0.8, COREUTILS.name), Goal("read", 0.9, COREUTILS.name), Goal("memory", 64.0)),
    ),
    Line(
        name="small",
        measures={"rate": Measure("durable files of 4 KiB, 16 writers", "a second", less_is_better=False)},
        contenders=(
            Contender(OURS, "filesystem.write of a node, whose changes share transactions", f"{HERE}.small:SmallFiles"),
            PLAIN,
            WHOLE,
        ),
        question=ask("small", seconds=4.0, quick=0.2),
        goals=(Goal("rate", 4.0, PLAIN.name), Goal("rate", 4.0, WHOLE.name)),
    ),
    Line(
        name="names",
        measures={
            key: measure
            for operation, about in OPERATIONS.items()
            for key, measure in (
                (f"{operation}/few", Measure(f"{about}, among 10,000 files", "ms", scale=1e3)),
                (f"{operation}/many", Measure(f"{about}, among 1,000,000", "ms", scale=1e3)),
                (f"{operation}/longer", Measure(f"{about}, by among 10,000", "times")),
            )
        },
        contenders=(Contender(OURS, "filesystem.stat, list and rename of a node", f"{HERE}.names:Names"),),
        question=_names,
        goals=tuple(Goal(f"{operation}/longer", 2.0) for operation in OPERATIONS),
    ),
    Line(
        name="search",
        measures={
            "p50": Measure("search by meaning among 100,000 pieces, p50", "ms", scale=1e3),
            "p99": Measure("search by meaning among 100,000 pieces, p99", "ms", scale=1e3),
        },
        contenders=(
            Contender(OURS, "filesystem.search of a node, the vector of the query included", f"{HERE}.search:Searches"),
        ),
        question=asked("search", {"pieces": 100_000, "times": 100}, {"pieces": 1_000, "times": 3}),
        goals=(Goal("p50", 20.0),),
        prepare=store_both,
    ),
)
NAMES = tuple(line.name for line in LINES)


def wanted(words: Sequence[str]) -> list[Line]:
    """The lines that are named; a word that is no line's name stands for all that have it in theirs."""
    return [line for line in LINES if meant(words, line.name, NAMES)]
