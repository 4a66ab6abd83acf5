"""AdamW (https://arxiv.org/abs/1711.05101) over flat parameters, alone or beside Muon for the matrices of layers.

torch's fused kernel goes over whole stretches of the flat tensors: one with weight decay and one without, instead of a
call for each parameter. All state is flat as well, so that it is written down and compared as the parameters are.
The same values, gradients and state give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from microkernel.errors import Invalid
from services.training.config import ScheduleConfig
from services.training.model.decoder import choose_dtype
from services.training.model.flat import FlatParameters, Slot
from services.training.optimisation.clipping import clip
from services.training.optimisation.muon import update_matrix

__all__ = ["Optimiser"]

EPS = 1e-8


class Stretch(NamedTuple):
    """Elements from `start` to `end` of the flat parameters that AdamW treats alike."""

    start: int
    end: int
    decayed: bool


class Optimiser:
    """What a schedule asks for: `adamw`, or `muon` with AdamW for embeddings, head and vectors."""

    def __init__(self, flat: FlatParameters, schedule: ScheduleConfig) -> None:
        self._flat = flat
        self._schedule = schedule
        self._dtype = choose_dtype(flat.values.device)
        self._matrices = [slot for slot in flat.layout.slots if schedule.optimiser == "muon" and _is_of_layer(slot)]
        stretches = _stretches(flat, {slot.name for slot in self._matrices})
        device = flat.values.device
        count = sum(stretch.end - stretch.start for stretch in stretches)
        self._steps = torch.zeros(len(stretches), device=device)
        self._average = torch.zeros(count, device=device)
        self._square = torch.zeros(count, device=device)
        self._momentum = torch.zeros(flat.layout.size - count, device=device)
        self._adamw = self._over(stretches) if stretches else None

    def step(self, factor: float, scale: float = 1.0) -> float:
        """Change the values by the gradients times `scale`, at the rates times `factor`; the gradient's length.

        The length is that of the scaled gradient before it is clipped; the gradients are used up. Raises `Diverged`
        where it is no number, before anything changes.
        """
        schedule = self._schedule
        length = clip(self._flat.gradients, schedule.clip, scale)
        if self._adamw is not None:
            for group in self._adamw.param_groups:
                group["lr"] = schedule.rate * factor
            self._adamw.step()
        end = 0
        with torch.no_grad():
            for slot in self._matrices:
                momentum = self._momentum[end : end + slot.size].view(slot.shape)
                end += slot.size
                update_matrix(
                    self._flat.value(slot.name),
                    self._flat.gradient(slot.name),
                    momentum,
                    rate=schedule.muon_rate * factor,
                    weight_decay=schedule.weight_decay,
                    dtype=self._dtype,
                )
        return length

    def state(self) -> dict[str, torch.Tensor]:
        """All that a step depends on beside values and gradients: the tensors themselves, not copies.

        float32: `average` and `square` of AdamW's elements in their order, `momentum` of Muon's (none without it), and
        `steps`, how many were taken (a number for each stretch of AdamW's).
        """
        state = {"average": self._average, "square": self._square, "steps": self._steps}
        return state | {"momentum": self._momentum} if self._matrices else state

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take a copy of a state. Raises `Invalid` where it is that of another optimiser or model."""
        own = self.state()
        shapes, given = ({name: tuple(tensor.shape) for name, tensor in each.items()} for each in (own, state))
        if shapes != given:
            raise Invalid(f"the optimiser's state has the shapes {shapes}, and {given} are given")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def _over(self, stretches: list[Stretch]) -> torch.optim.AdamW:
        groups, end = [], 0
        states: list[tuple[torch.nn.Parameter, dict[str, torch.Tensor]]] = []
        for index, stretch in enumerate(stretches):
            whole = torch.nn.Parameter(self._flat.values[stretch.start : stretch.end])
            whole.grad = self._flat.gradients[stretch.start : stretch.end]
            groups.append({"params": [whole], "weight_decay": self._schedule.weight_decay if stretch.decayed else 0.0})
            part = slice(end, end + stretch.end - stretch.start)
            end = part.stop
            state = {"step": self._steps[index], "exp_avg": self._average[part], "exp_avg_sq": self._square[part]}
            states.append((whole, state))
        optimiser = torch.optim.AdamW(groups, betas=self._schedule.betas, eps=EPS, fused=True)
        for whole, state in states:
            optimiser.state[whole] = state
        return optimiser


def _is_of_layer(slot: Slot) -> bool:
    return slot.name.startswith("blk.") and len(slot.shape) == 2


def _stretches(flat: FlatParameters, without: set[str]) -> list[Stretch]:
    """What AdamW goes over: as few as there can be."""
    stretches: list[Stretch] = []
    for slot in flat.layout.slots:
        if slot.name in without:
            continue
        end, decayed = slot.offset + slot.size, slot.offset < flat.layout.decayed
        if stretches and stretches[-1].end == slot.offset and stretches[-1].decayed is decayed:
            stretches[-1] = stretches[-1]._replace(end=end)
        else:
            stretches.append(Stretch(slot.offset, end, decayed))
    return stretches
