"""What a job is at: flat tensors by name, and the facts. The same on every worker, so it restores to any number."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from microkernel.errors import Invalid
from services.training.checkpoints.facts import Facts, check_facts, check_sizes

__all__ = ["TrainingState"]


@dataclass(frozen=True, slots=True)
class TrainingState:
    """`tensors` are float32 [elements], contiguous, on any device: "weights", "adamw.exp_avg" and so on."""

    tensors: dict[str, torch.Tensor]
    facts: Facts

    @property
    def sizes(self) -> dict[str, int]:
        """The elements of each tensor."""
        return {name: tensor.numel() for name, tensor in self.tensors.items()}

    def check(self) -> None:
        """Raise `Invalid`, which names what cannot be kept."""
        for name, tensor in self.tensors.items():
            if tensor.dtype != torch.float32 or tensor.dim() != 1 or not tensor.is_contiguous():
                raise Invalid(
                    f"the tensor {name} is {tensor.dtype} {list(tensor.shape)}: flat, contiguous float32 is kept",
                    field="tensors",
                )
        sizes = self.sizes
        check_sizes(sizes)
        check_facts(self.facts, sizes)
