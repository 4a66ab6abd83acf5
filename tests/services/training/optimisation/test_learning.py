"""Model and optimiser together: what is learned by heart."""

from __future__ import annotations

import gguf
import pytest
import torch
from tiny_models import write_gguf
from tiny_training import FULL, batch_of, tiny_config

from formats.checkpoint.checkpoint import open_checkpoint
from services.training.config import MethodConfig, ScheduleConfig
from services.training.model.loading import open_model
from services.training.optimisation.optimiser import Optimiser
from services.training.optimisation.schedule import rate_factor

BATCH = batch_of([10, 6], [16])
STEPS = 25


def learned(model, schedule: ScheduleConfig) -> float:
    """What is lost of a token behind so many steps over the same rows."""
    optimiser = Optimiser(model.flat, schedule)
    for step in range(STEPS):
        model.flat.clear()
        total, count = model.loss(BATCH)
        total.backward()
        optimiser.step(rate_factor(schedule, step, STEPS), 1.0 / count)
    with torch.no_grad():
        total, count = model.loss(BATCH)
    return total.item() / count


@pytest.mark.parametrize(("kind", "rate"), [("adamw", 1e-2), ("muon", 1e-2)])
def test_a_new_model_learns_its_rows_by_heart(kind, rate):
    model = open_model(tiny_config("qwen3", layers=1), FULL, dtype=torch.float32)
    assert learned(model, ScheduleConfig(optimiser=kind, rate=rate)) < 0.5


@pytest.mark.parametrize("four_bit", [False, True])
def test_an_adapter_learns_its_rows_by_heart(tmp_path, four_bit):
    path = write_gguf(tmp_path / "tiny.gguf", kind=gguf.GGMLQuantizationType.Q4_1, layers=1)
    method = MethodConfig(four_bit=four_bit, dropout=0.1)
    model = open_model(open_checkpoint(path), method, dtype=torch.float32)
    assert learned(model, ScheduleConfig(rate=2e-2)) < 0.5
