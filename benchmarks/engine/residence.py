"""How much memory a process of the engine takes at its peak, by the size of the file that it has loaded.

What it holds after a single short answer: its cache has a page or two then. `no_model.py` is the same process without
a model, so that it is known what the interpreter and its libraries take.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.engine.contenders import SAME_FILE, llama, ours, taking_part
from benchmarks.engine.line import Goal, Group, Line, Taken
from benchmarks.engine.stage import Stage
from benchmarks.first_token.contender import Broken, Contender
from benchmarks.first_token.worker import Worker
from benchmarks.measure import Measure, Round

__all__ = ["GROUP"]

MOST = 1.3  # times the file

SMALL, BIG = "memory", "big-memory"  # the lines
LABELS = {SMALL: "peak memory by the file's size", BIG: "0.7 billion as Q4_K_M: peak memory by the file's size"}
PEAK = {name: Measure(label, "x") for name, label in LABELS.items()}
BEYOND = {name: Measure(f"{label}, libraries left out", "x") for name, label in LABELS.items()}


def _take(stage: Stage, lines: Sequence[Line]) -> Taken:
    names = [line.name for line in lines]
    taken = taking_part([ours(stage, stage.model), llama(stage, stage.model)])
    if BIG in names and SAME_FILE in taken.skipped:
        names.remove(BIG)
        taken.notes.append(f"{BIG}: llama.cpp writes the file, and is not installed")
    bare = Worker(
        "no model",
        "",
        engine="benchmarks.engine.no_model",
        model=stage.model,
        cores=stage.threads,
        packages={},
        log=stage.log("no-model"),
    )

    out: set[tuple[str, str]] = set()

    def one(number: int) -> Round:
        stage.tell(f"round {number + 1}: memory")
        found: Round = {}
        libraries = _peak(stage, bare)
        stage.tell(f"  no model: {libraries / 2**20:.0f} MiB")
        for name in names:
            model = stage.model if name == SMALL else stage.big
            for contender in (ours(stage, model), llama(stage, model)):
                if contender.name in taken.skipped or (contender.name, name) in out:
                    continue
                try:
                    peak = _peak(stage, contender)
                except Broken as error:
                    out.add((contender.name, name))
                    taken.notes.append(f"{name}: {contender.name} was left out: {error}")
                    stage.tell(f"  {contender.name}, {name}, is out: {error}")
                    continue
                values = found.setdefault(contender.name, {})
                values[PEAK[name].name] = peak / _bytes(model)
                if contender.name == taken.ours:
                    values[BEYOND[name].name] = max(0.0, peak - libraries) / _bytes(model)
                stage.tell(f"  {contender.name}, {name}: {peak / 2**20:.0f} MiB, {peak / _bytes(model):.3g} times")
        return found

    taken.rounds = stage.repeat(one)
    return taken


def _peak(stage: Stage, contender: Contender) -> float:
    """Bytes that were resident at the most by the time of a short answer."""
    running = contender.start(stage.prompts.short()[0])
    try:
        running.generate(stage.prompts.short(), 16)
        return running.memory().peak
    finally:
        running.close()


def _bytes(model: Path) -> int:
    return model.stat().st_size


GROUP = Group(
    "what a process of the engine holds, in a process that has given one answer",
    tuple(
        Line(name=name, measures=(PEAK[name], BEYOND[name]), goals=(Goal(PEAK[name].name, MOST),)) for name in LABELS
    ),
    _take,
)
