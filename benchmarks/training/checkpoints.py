"""`python -m benchmarks.training.checkpoints`: what keeping a state costs training, beside what torch has for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.command_line import meant
from benchmarks.judged import measure, parsed, parser_of
from benchmarks.measure import Measure
from benchmarks.scheduling.line import Contender, Goal, Line, asked

__all__ = ["LINES", "NAMES", "main"]

HERE = "benchmarks.training.savers"
OURS = Contender("microkernel", "`CheckpointSaver`: digests and a signature included", f"{HERE}:Ours")
ASYNC = Contender("async_save", "torch.distributed.checkpoint.async_save, synced", f"{HERE}:AsyncSave")
STAGED = Contender("async_save, stager kept", "the same with a DefaultStager that is kept", f"{HERE}:AsyncSaveStaged")
TORCH = Contender("torch.save", "torch.save beside, synced, renamed", f"{HERE}:TorchSave")
SIZES = (63, 500)  # MB: a LoRA of a small model with its moments, and a model of 42 M parameters
PACKAGES = ("microkernel", "torch", "blake3", "cryptography")

LINES: tuple[Line, ...] = (
    Line(
        name="save",
        measures={
            key: measure
            for size in SIZES
            for key, measure in (
                (f"blocked/{size}", Measure(f"training waits, {size} MB", "ms/MB", scale=1e3)),
                (f"durable/{size}", Measure(f"until durable, {size} MB", "ms", scale=1e3)),
            )
        },
        contenders=(OURS, ASYNC, STAGED, TORCH),
        question=asked("sizes", {"megabytes": list(SIZES), "times": 6}, {"megabytes": [63], "times": 2}),
        goals=tuple(
            goal
            for size in SIZES
            for goal in (
                Goal(f"blocked/{size}", 0.1),
                Goal(f"blocked/{size}", 2.0, ASYNC.name),
                Goal(f"blocked/{size}", 2.0, STAGED.name),
            )
        ),
    ),
    Line(
        name="loop",
        measures={
            "lost": Measure("a busy loop's time lost, 63 MB every 50 steps", "%", scale=100.0),
            "noise": Measure("two blocks without a checkpoint differ by", "%", scale=100.0),
            "cost": Measure("copy, and the writer's share of the cores", "%", scale=100.0),
        },
        contenders=(OURS,),  # a ratio of two losses near zero would say nothing
        question=asked("loop", {"megabytes": 63, "blocks": 1}, {"megabytes": 63, "blocks": 1, "steps": 5}),
        goals=(Goal("lost", 0.5), Goal("cost", 0.5)),
    ),
)
NAMES = tuple(line.name for line in LINES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    args = parsed(parser_of("training.checkpoints", __doc__, NAMES), arguments, NAMES)
    lines = [line for line in LINES if meant(args.only, line.name, NAMES)]
    return measure("training.checkpoints", lines, PACKAGES, args, arguments)[1]


if __name__ == "__main__":
    sys.exit(main())
