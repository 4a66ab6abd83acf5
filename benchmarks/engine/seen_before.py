"""How soon the first token of a prompt of 2,000 tokens comes that the node has read before.

Asked over HTTP, as a user asks: at once; after another model was loaded and has answered; after a restart of the node.
Each is a share of what prompts that nobody has seen take in the same round.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.engine.contenders import AS_Q4_0, llama_as_q4_0, taking_part
from benchmarks.engine.line import Goal, Group, Line, Taken
from benchmarks.engine.stage import Stage
from benchmarks.first_token.contender import Broken, Prompt
from benchmarks.first_token.node import Node, RunningNode
from benchmarks.measure import Measure, Round
from microkernel.errors import MicrokernelError
from microkernel.wire.client import connect_sync

__all__ = ["GROUP"]

LENGTH = 2000
TOKENS = 4  # an answer of one would be flushed by its end
SAMPLES = 3
LOADING = 300.0  # seconds for another model

COLD = Measure("first token, prompt of 2,000 tokens", "ms", scale=1e3)
AT_ONCE = Measure("seen before, same process", "% of that", scale=100.0)
OTHER_MODEL = Measure("seen before, another model in between", "% of that", scale=100.0)
RESTARTED = Measure("seen before, after a restart", "% of that", scale=100.0)


def _take(stage: Stage, _: Sequence[Line]) -> Taken:
    root = stage.folder("prefix")
    node = Node(stage.model, root)
    taken = taking_part([node])
    other = stage.q4_0 if llama_as_q4_0(stage) else None
    if other is None:
        taken.skipped[AS_Q4_0] = "llama.cpp writes the other model's file, and is not installed"

    def one(number: int) -> Round:
        stage.tell(f"round {number + 1}: prompts seen before")
        prompt = stage.prompts.long(LENGTH)
        strangers = [stage.prompts.long(LENGTH) for _ in range(1 if stage.quick else SAMPLES - 1)]
        running = node.start(stage.prompts.short()[0])
        try:
            # What reads a prompt for the first time is warm before: it is not what is compared.
            running.generate([stage.prompts.long(LENGTH)], TOKENS)
            cold = statistics.median(_first(running, each) for each in [*strangers, prompt])
            found = {AT_ONCE: statistics.median(_first(running, prompt) for _ in range(SAMPLES))}
            if other is not None:
                _use(root, other, stage.prompts.short()[0])
                found[OTHER_MODEL] = _first(running, prompt)
        finally:
            running.close()
        running = node.start(stage.prompts.short()[0])
        try:
            found[RESTARTED] = _first(running, prompt)
        finally:
            running.close()
        shares = {measure.name: seconds / cold for measure, seconds in found.items()}
        stage.tell(f"  {cold * 1e3:.4g} ms; " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
        return {node.name: {COLD.name: cold, **shares}}

    taken.rounds = stage.repeat(one)
    return taken


def _first(running: RunningNode, prompt: Prompt) -> float:
    (answer,) = running.generate([prompt], TOKENS)
    return answer.first


def _use(root: Path, model: Path, prompt: Prompt) -> None:
    """Load another model into the node, and have it answer."""
    try:
        with connect_sync(root=root) as system:
            name = system.call("inference.load", ref=str(model), deadline=LOADING)["name"]
            with system.stream("inference.chat", messages=prompt.messages, max_tokens=16, model=name) as pieces:
                for _ in pieces:
                    pass
    except MicrokernelError as error:
        raise Broken(f"another model could not be used: {error}") from error


GROUP = Group(
    "the first token of a prompt that the node has read before, over HTTP",
    (
        Line(
            name="seen-before",
            measures=(COLD, AT_ONCE, OTHER_MODEL, RESTARTED),
            goals=(Goal(AT_ONCE.name, 5.0), Goal(OTHER_MODEL.name, 15.0), Goal(RESTARTED.name, 15.0)),
        ),
    ),
    _take,
)
