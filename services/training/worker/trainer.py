"""A job as one worker computes it: the model, the state of its optimiser, and a step (hot: once a step).

A step is done by all workers or by none: each adds up its shards, all sum over the group, and only who has the whole
sum changes its weights. Whoever stops before that is where it was. All that follows from a step is computed from the
whole sum, so it is the same on every worker, to the bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import torch

from formats.checkpoint.checkpoint import Checkpoint, open_checkpoint
from formats.text.tokenizer import open_tokenizer
from microkernel.errors import Invalid
from services.training.checkpoints.facts import EVALUATION_LOSS, Facts, Parameter
from services.training.checkpoints.state import TrainingState
from services.training.data.dataset import Dataset
from services.training.data.plan import LeftOut
from services.training.job_file import JobFile
from services.training.model.loading import fresh_config, open_model
from services.training.model.lora import draw_seed
from services.training.model.saving import save_adapter, save_model
from services.training.optimisation.clipping import Diverged
from services.training.optimisation.optimiser import Optimiser
from services.training.optimisation.schedule import rate_factor
from services.training.orders import Evaluated, Stepped
from services.training.worker.group import Group

__all__ = ["StepResult", "Trainer"]

MEMORY = 0.9  # of a mean loss: what it keeps from one step to the next
SETTLED = 20  # steps before a loss can be told from a spike


class StepResult(msgspec.Struct, frozen=True):
    """What a step was, and the most urgent wish that any worker had before it: 0 for none."""

    stepped: Stepped
    wish: int


class Trainer:
    """The state behind `step` steps, and what makes the next one of it."""

    def __init__(self, job: JobFile) -> None:
        """Raises what reading the model and the data raises."""
        config = job.config
        self.job = job
        self.step = 0
        self.tokens = 0
        self.metrics: dict[str, float] = {}
        self._mean: float | None = None  # of the losses so far
        self.source: Checkpoint | None = open_checkpoint(Path(job.base)) if job.base else None
        tokenizer = Path(job.tokenizer) if job.tokenizer else None
        shape = self.source or fresh_config(config.model, _vocabulary(tokenizer))
        self.model = open_model(
            shape,
            config.method,
            device=torch.device(job.device),
            dtype=getattr(torch, job.dtype),
            recompute=config.devices.recompute,
            seed=config.schedule.seed,
        )
        self.flat = self.model.flat
        self.optimiser = Optimiser(self.flat, config.schedule)
        self.dataset = Dataset(job.prepared, config.data.length, config.schedule.seed)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All that training changes, flat."""
        return {"weights": self.flat.values, **self.optimiser.state()}

    def do_step(self, group: Group, wish: int, phase: Callable[[str], None], between: Callable[[], None]) -> StepResult:
        """One step with the group. `between` is called after each shard, and may raise to have the step not done.

        Raises `GroupBroken`, and `Diverged`; then nothing has changed.
        """
        began, schedule = time.perf_counter(), self.job.config.schedule
        sums, losses = group.partial_sums(), []
        for shard in group.shards:
            phase("forward")
            batch = self.dataset.batch(self.step, shard, schedule.rows, schedule.shards)
            loss, learned = self.model.loss(batch, draw_seed(schedule.seed, self.step, shard))
            self.flat.clear()
            phase("backward")
            loss.backward()  # type: ignore[no-untyped-call] # torch has no types for it
            sums.add(shard, self.flat.gradients)
            losses += [float(loss.detach()), float(learned), float(batch.tokens.size)]
            between()
        phase("summing")
        told = group.gather([float(wish), *_padded(losses, group.most_shards)])
        loss_sum, targets, tokens = _over_shards(told)
        if targets == 0:
            raise Invalid(f"nothing is learned in step {self.step}: no row of it has a target", field="data")
        self._check_loss(loss_sum / targets)
        group.total(sums.parts, self.flat.gradients)
        phase("applying")
        factor = rate_factor(schedule, self.step, self.job.steps)
        norm = self.optimiser.step(factor, 1.0 / targets)
        self._follow(loss_sum / targets)
        self.step += 1
        self.tokens += int(tokens)
        stepped = Stepped(
            step=self.step,
            loss=loss_sum / targets,
            tokens=int(tokens),
            learned=int(targets),
            norm=norm,
            rate=schedule.rate * factor,
            seconds=time.perf_counter() - began,
        )
        return StepResult(stepped, max(int(each[0]) for each in told))

    def evaluate(self, group: Group, phase: Callable[[str], None]) -> Evaluated | None:
        """The loss on what is held out; None where nothing is. Raises `GroupBroken`."""
        wanted = min(self.job.config.evaluation.rows, self.dataset.evaluation_rows)
        size = max(1, self.job.config.schedule.rows // self.job.config.schedule.shards)
        count = -(-wanted // size)
        if count == 0:
            return None
        phase("evaluating")
        mine: list[float] = []
        own = range(group.rank, count, group.world)
        with torch.no_grad():
            for index in own:
                loss, learned = self.model.loss(self.dataset.evaluation(index, size))
                mine += [float(loss), float(learned)]
        told = group.gather(_padded(mine, 2 * -(-count // group.world)))
        # By number, as one worker alone would add them up.
        pairs = [told[index % group.world][2 * (index // group.world) :][:2] for index in range(count)]
        learned_tokens = sum(pair[1] for pair in pairs)
        if learned_tokens == 0:
            return None
        mean = sum(pair[0] for pair in pairs) / learned_tokens
        self.metrics[EVALUATION_LOSS] = mean
        return Evaluated(step=self.step, loss=mean, tokens=int(learned_tokens))

    def state(self) -> TrainingState:
        """All that a checkpoint keeps; its tensors are this trainer's own."""
        parameters = tuple(Parameter(slot.name, slot.shape, slot.offset) for slot in self.flat.layout.slots)
        facts = Facts(
            step=self.step,
            tokens=self.tokens,
            seed=self.job.config.schedule.seed,
            position=self.step * self.job.config.schedule.rows,
            left_out=_flattened(self.dataset.plan.left_out),
            data_digest=self.job.prepared.digest,
            metrics=dict(self.metrics),
            layout={"weights": parameters},
            extra={"mean_loss": self._mean},
        )
        return TrainingState(self.tensors, facts)

    def restore(self, state: TrainingState) -> None:
        """Go on from a checkpoint. Raises `Invalid` where it is not of this model, method or data."""
        facts, mine = state.facts, self.state()
        if facts.layout != mine.facts.layout or state.sizes != mine.sizes:
            raise Invalid(f"the checkpoint of step {facts.step} is of another model or method", field="model")
        if facts.data_digest != self.job.prepared.digest or facts.seed != self.job.config.schedule.seed:
            raise Invalid(f"the checkpoint of step {facts.step} is of other data or another seed", field="data")
        for name, tensor in self.tensors.items():
            tensor.copy_(state.tensors[name])
        self.take_facts(facts)

    def take_facts(self, facts: Facts) -> None:
        """Be at another step; the tensors are there already."""
        self.step, self.tokens, self.metrics = facts.step, facts.tokens, dict(facts.metrics)
        mean = facts.extra.get("mean_loss")
        self._mean = float(mean) if isinstance(mean, float | int) else None
        schedule = self.job.config.schedule
        self.dataset = Dataset(self.job.prepared, self.dataset.length, schedule.seed, _unflattened(facts.left_out))

    def leave_out_step(self, step: int) -> None:
        """Pass over the rows of a step from there on: others take their places."""
        rows = self.job.config.schedule.rows
        self.dataset.skip(self.dataset.rows_of(step, rows).tolist(), step, rows)

    def save(self, folder: Path) -> None:
        """Write what was learned: an adapter, or the whole model. Raises `OSError` and `AlreadyExists`."""
        method, config = self.job.config.method, self.model.config
        if method.kind == "lora":
            save_adapter(folder, self.flat, config, method, model=self.job.config.model.base or "")
            return
        tokenizer = Path(self.job.tokenizer)
        source = self.source or open_checkpoint(tokenizer)
        save_model(folder, self.flat, config, source.tokenizer_source, rope_factors=self.model.rope_factors)

    def _check_loss(self, loss: float) -> None:
        """Raise `Diverged` for what is no number, or far above the mean."""
        spike, mean = self.job.config.faults.spike, self._mean
        if not math.isfinite(loss) or (mean is not None and self.step >= SETTLED and loss > spike * mean):
            why = f"the loss of step {self.step} is {loss:g}"
            raise Diverged(
                why if mean is None else f"{why}, and {mean:.3g} in the mean before it",
                field="schedule.rate",
                remedy="lower schedule.rate, or have faults.diverged = 'rollback' pass over such rows",
            )

    def _follow(self, loss: float) -> None:
        self._mean = loss if self._mean is None else MEMORY * self._mean + (1 - MEMORY) * loss


def _vocabulary(tokenizer: Path | None) -> int:
    if tokenizer is None:
        raise Invalid("a model from scratch needs a tokenizer", field="model.tokenizer")
    return open_tokenizer(open_checkpoint(tokenizer).tokenizer_source).vocab_size


def _padded(values: list[float], size: int) -> list[float]:
    return values + [0.0] * (size - len(values))


def _over_shards(told: list[list[float]]) -> tuple[float, float, float]:
    """Loss, learned tokens and tokens, added up by shard."""
    triples = [each[place : place + 3] for each in told for place in range(1, len(each), 3)]
    return sum(t[0] for t in triples), sum(t[1] for t in triples), sum(t[2] for t in triples)


def _flattened(left_out: Iterable[LeftOut]) -> tuple[int, ...]:
    """For each where it begins, how many rows, and the rows."""
    return tuple(number for each in left_out for number in (each.start, len(each.rows), *each.rows))


def _unflattened(numbers: tuple[int, ...]) -> tuple[LeftOut, ...]:
    found, place = [], 0
    while place < len(numbers):
        start, count = numbers[place : place + 2]
        found.append(LeftOut(start, numbers[place + 2 : place + 2 + count]))
        place += 2 + count
    return tuple(found)
