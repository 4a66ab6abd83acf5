"""The length of a flat gradient, and its shortening to a limit; a gradient that is no number is refused.

The sum is taken over stretches of a fixed size, each by one thread, so that it does not depend on how many there are.
"""

from __future__ import annotations

import math

import torch

from microkernel.errors import PreconditionFailed

__all__ = ["Diverged", "clip", "length_of"]

STRETCH = 1 << 12  # elements


class Diverged(PreconditionFailed):
    """The gradient is no number: nothing was changed."""


def length_of(gradients: torch.Tensor) -> float:
    """The Euclidean norm of a flat tensor, float32 [n]; not finite where one of its numbers is not."""
    whole = len(gradients) // STRETCH * STRETCH
    lengths = torch.linalg.vector_norm(gradients[:whole].view(-1, STRETCH), dim=1).cpu()
    rest = torch.linalg.vector_norm(gradients[whole:]).cpu()
    return float(torch.cat((lengths, rest[None])).double().square().sum().sqrt())


def clip(gradients: torch.Tensor, limit: float, scale: float = 1.0) -> float:
    """Multiply `gradients` by `scale`, shorten them to `limit` where they are longer (0: never); their length before.

    Raises `Diverged` where it is no number, with `gradients` as they were.
    """
    length = length_of(gradients) * scale
    if not math.isfinite(length):
        raise Diverged("the gradient holds numbers that are not finite")
    factor = scale if not limit or length <= limit else scale * (limit / length)
    if factor != 1.0:
        gradients.mul_(factor)
    return length
