"""Who takes part in the lines that compare, and how their rounds are taken."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.engine.fair import Tuned
from benchmarks.engine.line import Question, Taken
from benchmarks.engine.stage import Stage
from benchmarks.first_token.contender import Contender
from benchmarks.first_token.llama_cpp_peer import llama_cpp
from benchmarks.first_token.measures import Task
from benchmarks.first_token.own_engine import own_engine
from benchmarks.first_token.rounds import Rounds
from benchmarks.first_token.worker import Worker

__all__ = ["AS_Q4_0", "SAME_FILE", "llama", "llama_as_q4_0", "ours", "questions", "rounds_of", "taking_part"]

SAME_FILE, AS_Q4_0 = "llama.cpp, same file", "llama.cpp, as Q4_0"  # as the contenders are named
# Left alone, it decides by itself: it takes flash attention where a device has it, as every CPU has.
SETTINGS = {"flash attention": {"flash_attn_type": 1}, "no flash attention": {"flash_attn_type": 0}}
TURNS = 3  # of each in the trial


def ours(stage: Stage, model: Path, *, slots: int | None = None) -> Worker:
    """Our engine without the system around it."""
    return own_engine(model, stage.threads, stage.log(f"engine-{model.stem}"), slots=slots)


def llama(stage: Stage, model: Path, *, weights: str = "same file") -> Tuned:
    """llama.cpp with that file, and with those of its settings that it is fastest with."""
    worker = llama_cpp(model, stage.threads, stage.log(f"llama-{model.stem}"), weights=weights)
    return Tuned(worker, SETTINGS, turns=1 if stage.quick else TURNS, tell=stage.tell)


def llama_as_q4_0(stage: Stage) -> list[Contender]:
    """llama.cpp with the model as Q4_0; nobody where llama.cpp is not there to write that."""
    asked = llama(stage, stage.model, weights="as Q4_0")
    return [] if asked.missing() else [llama(stage, stage.q4_0, weights="as Q4_0")]


def questions(stage: Stage, lines: Sequence[Question]) -> Callable[[], list[Task]]:
    """Makes the tasks of a round."""
    return lambda: [line.make(stage.prompts, stage.quick) for line in lines]


def rounds_of(stage: Stage, contenders: Sequence[Contender], tasks: Callable[[], Sequence[Task]]) -> Taken:
    """Ask all `contenders`, ours first, in rounds."""
    taken = taking_part(contenders)
    present = [each for each in contenders if each.name not in taken.skipped]
    if taken.ours in taken.skipped:
        return taken
    rounds = Rounds(present, stage.prompts, tasks, first_start=False, tell=stage.tell)
    taken.rounds = stage.repeat(rounds.run)
    taken.skipped |= rounds.left
    taken.notes += rounds.notes
    taken.notes += [note for each in present if isinstance(each, Tuned | Worker) for note in each.notes()]
    return taken


def taking_part(contenders: Sequence[Contender]) -> Taken:
    """Nothing measured yet: who takes part, how they are started, and who cannot."""
    return Taken(
        contenders={each.name: each.about for each in contenders},
        commands={each.name: shlex.join(each.command) for each in contenders},
        versions={name: version for each in contenders for name, version in each.versions().items()},
        skipped={each.name: why for each in contenders if (why := each.missing())},
    )
