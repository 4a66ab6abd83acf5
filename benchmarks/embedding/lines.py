"""All lines of the benchmark, with the goals that we have set ourselves."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.command_line import meant
from benchmarks.default_model import store_both
from benchmarks.measure import Measure
from benchmarks.scheduling.line import Contender, Goal, Line, asked

__all__ = ["LINES", "NAMES", "wanted"]

HERE = "benchmarks.embedding"
OURS = Contender(
    "microkernel", "inference.embed of a node with its default model, called through the kernel", f"{HERE}.node:Node"
)
PEER = Contender(
    "sentence-transformers",
    "SentenceTransformer.encode with its usual settings, the same model in float32 on all cores",
    f"{HERE}.peer:SentenceTransformers",
    packages={"sentence_transformers": "sentence-transformers"},
)


def _index(name: str, kind: str, about: str, count: int) -> Line:
    return Line(
        name=name,
        measures={"texts": Measure(about, "texts/s", less_is_better=False)},
        contenders=(OURS, PEER),
        question=asked("index", {"kind": kind, "count": count}, {"kind": kind, "count": 20}),
        goals=(Goal("texts", 1.0, PEER.name),),
        prepare=store_both,
    )


LINES: tuple[Line, ...] = (
    _index("paragraphs", "paragraphs", "vectors of paragraphs of documentation", 600),
    _index("sentences", "lines", "vectors of single sentences of documentation", 1000),
    Line(
        name="search",
        measures={"one": Measure("vector of one sentence, p50", "ms", scale=1e3)},
        contenders=(OURS, PEER),
        question=asked("search", {"count": 100}, {"count": 3}),
        goals=(Goal("one", 1.0, PEER.name),),
        prepare=store_both,
    ),
)
NAMES = tuple(line.name for line in LINES)


def wanted(words: Sequence[str]) -> list[Line]:
    """The lines that are named; a word that is no line's name stands for all that have it in theirs."""
    return [line for line in LINES if meant(words, line.name, NAMES)]
