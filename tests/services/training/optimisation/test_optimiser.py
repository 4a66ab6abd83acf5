"""AdamW and Muon over flat parameters."""

from __future__ import annotations

import pytest
import torch

from microkernel.errors import Invalid
from services.training.config import ScheduleConfig
from services.training.model.flat import FlatParameters, lay_out
from services.training.optimisation.clipping import Diverged
from services.training.optimisation.optimiser import Optimiser

SHAPES = {
    "token_embd.weight": (40, 16),
    "blk.0.attn_norm.weight": (16,),
    "blk.0.attn_q.weight": (16, 16),
    "blk.0.ffn_up.weight": (48, 16),
    "output_norm.weight": (16,),
    "output.weight": (40, 16),
}
UNCLIPPED = ScheduleConfig(clip=0.0, weight_decay=0.1, rate=1e-2)


def filled(seed: int = 0) -> FlatParameters:
    flat = FlatParameters(lay_out(SHAPES), torch.device("cpu"))
    flat.values.normal_(generator=torch.Generator().manual_seed(seed))
    return flat


def draw(flat: FlatParameters, seed: int) -> None:
    flat.gradients.normal_(generator=torch.Generator().manual_seed(seed))


def after(flat: FlatParameters, optimiser: Optimiser, steps: range) -> torch.Tensor:
    for step in steps:
        draw(flat, step)
        optimiser.step(1.0 / (step + 1))
    return flat.values.clone()


def test_adamw_over_stretches_has_the_bits_of_adamw_over_tensors():
    flat = filled()
    tensors = {slot.name: torch.nn.Parameter(flat.value(slot.name).clone()) for slot in flat.layout.slots}
    groups = [
        {"params": [each for each in tensors.values() if (each.ndim > 1) is matrices], "weight_decay": decay}
        for matrices, decay in ((True, 0.1), (False, 0.0))
    ]
    theirs = torch.optim.AdamW(groups, lr=1e-2, betas=UNCLIPPED.betas, fused=True)
    own = Optimiser(flat, UNCLIPPED)
    for step in range(5):
        draw(flat, step)
        for name, tensor in tensors.items():
            tensor.grad = flat.gradient(name).clone()
        theirs.step()
        own.step(1.0)
    for name, tensor in tensors.items():
        assert torch.equal(flat.value(name), tensor.detach()), name


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_same_steps_give_the_same_bits(kind):
    schedule = ScheduleConfig(optimiser=kind)
    first, second = filled(), filled()
    assert torch.equal(
        after(first, Optimiser(first, schedule), range(4)), after(second, Optimiser(second, schedule), range(4))
    )


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_state_that_is_loaded_goes_on_with_the_same_bits(kind):
    schedule = ScheduleConfig(optimiser=kind)
    flat = filled()
    optimiser = Optimiser(flat, schedule)
    middle = after(flat, optimiser, range(3))
    state = {name: tensor.clone() for name, tensor in optimiser.state().items()}
    expected = after(flat, optimiser, range(3, 6))
    resumed = filled()
    resumed.load(middle)
    other = Optimiser(resumed, schedule)
    other.load_state(state)
    assert torch.equal(after(resumed, other, range(3, 6)), expected)


def test_muon_takes_the_matrices_of_layers_alone():
    flat, plain = filled(), filled()
    after(flat, Optimiser(flat, ScheduleConfig(optimiser="muon", clip=0.0)), range(1))
    after(plain, Optimiser(plain, ScheduleConfig(clip=0.0)), range(1))
    same = {slot.name for slot in flat.layout.slots if torch.equal(flat.value(slot.name), plain.value(slot.name))}
    assert SHAPES.keys() - same == {"blk.0.attn_q.weight", "blk.0.ffn_up.weight"}


def test_muon_alone_leaves_nothing_to_adamw():
    flat = FlatParameters(lay_out({"blk.0.attn_q.weight.lora_a": (4, 16)}), torch.device("cpu"))
    flat.gradients.fill_(1.0)
    Optimiser(flat, ScheduleConfig(optimiser="muon")).step(1.0)
    assert flat.values.ne(0.0).all()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_gradient_that_is_no_number_changes_nothing(kind):
    flat = filled()
    optimiser = Optimiser(flat, ScheduleConfig(optimiser=kind))
    before = after(flat, optimiser, range(1))
    state = {name: tensor.clone() for name, tensor in optimiser.state().items()}
    flat.gradients[7] = float("nan")
    with pytest.raises(Diverged):
        optimiser.step(1.0)
    assert torch.equal(flat.values, before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in optimiser.state().items())


def test_the_length_is_told_before_the_gradient_is_clipped():
    flat = filled()
    flat.gradients.zero_()
    flat.gradients[:2] = torch.tensor([30.0, 40.0])
    assert Optimiser(flat, ScheduleConfig(clip=1.0)).step(1.0, scale=0.1) == pytest.approx(5.0)


def test_the_state_of_another_optimiser_is_refused():
    flat = filled()
    state = Optimiser(flat, ScheduleConfig(optimiser="muon")).state()
    with pytest.raises(Invalid, match="state has the shapes"):
        Optimiser(flat, ScheduleConfig()).load_state(state)
