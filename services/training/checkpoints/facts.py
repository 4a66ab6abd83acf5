"""What a checkpoint says beside its tensors: how far the job is, and which parameter is where. Without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated

import msgspec

from microkernel.errors import Invalid
from microkernel.message import Message

__all__ = ["EVALUATION_LOSS", "Facts", "Parameter", "check_facts", "check_sizes"]

EVALUATION_LOSS = "evaluation_loss"
"""The metric by which a checkpoint is the best of its job; less is better."""

TENSOR = re.compile(r"[a-z0-9][a-z0-9_.-]{0,127}")
MOST_ELEMENTS = 1 << 48  # of a tensor: a petabyte of float32, far beyond what is trained and within 64 bits

Whole = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Parameter(Message, forbid_unknown_fields=True):
    """A parameter within a flat tensor: its shape, and the element at which it begins."""

    name: str
    shape: tuple[Whole, ...]
    start: Whole

    @property
    def elements(self) -> int:
        """How many there are of it."""
        return math.prod(self.shape)


class Facts(Message, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What a job is at, apart from its numbers.

    `position` is that of the next row in the data, `left_out` are rows that are passed over. `layout` has, for a flat
    tensor, the parameters in it by where they begin; they do not overlap. Digests are BLAKE3 in hex, as their makers
    take them. `metrics` are finite. `extra` is for what has no field of its own. A field that is added gets a default:
    defaults are not written, so what was written before stays as it would be written.
    """

    step: Whole
    tokens: Whole = 0
    seed: Whole = 0
    position: Whole = 0
    left_out: tuple[Whole, ...] = ()
    config_digest: str = ""
    data_digest: str = ""
    metrics: dict[str, float] = {}
    layout: dict[str, tuple[Parameter, ...]] = {}
    extra: dict[str, str | int | float | bool | None] = {}


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Raise `Invalid` unless these are names of tensors with their numbers of elements."""
    if not sizes:
        raise Invalid("a checkpoint without tensors would keep nothing", field="tensors")
    for name, elements in sizes.items():
        if TENSOR.fullmatch(name) is None:
            raise Invalid(f"{name[:64]!r} is no name of a tensor: a-z, 0-9 and _.- are, up to 128", field="tensors")
        if not 0 < elements <= MOST_ELEMENTS:
            raise Invalid(f"the tensor {name} has {elements} elements", field="tensors")


def check_facts(facts: Facts, sizes: Mapping[str, int]) -> None:
    """Raise `Invalid` where `facts` are not those of tensors with so many elements."""
    for name, value in (*facts.metrics.items(), *facts.extra.items()):
        if isinstance(value, float) and not math.isfinite(value):
            raise Invalid(f"{name[:64]!r} is {value}, which JSON cannot say", field="metrics")
    for tensor, parameters in facts.layout.items():
        if tensor not in sizes:
            raise Invalid(f"the layout is of a tensor {tensor[:64]!r} that is not there", field="layout")
        end = 0
        for each in parameters:
            if each.start < end or each.start + each.elements > sizes[tensor]:
                raise Invalid(
                    f"the parameter {each.name[:64]!r} takes the elements {each.start} to {each.start + each.elements} "
                    f"of {tensor}, which has {sizes[tensor]}, and {end} are taken",
                    field="layout",
                )
            end = each.start + each.elements
