"""What a model takes beside its weights, and what to tell who asks for one that does not fit. Plain functions."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from formats.checkpoint.architecture import DecoderConfig
from microkernel.errors import Overloaded
from services.inference.cache.keys import PAGE
from services.memory.messages import in_units

__all__ = ["Neighbour", "Wish", "buffer_bytes", "too_large"]

FLOAT = 4  # bytes
SMALLEST = 0.57  # bytes a parameter at 4 bits: quants, scales, and embeddings that stay larger
WORTH = 0.75  # a smaller quantisation is named where it takes less than this part of what the weights take


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is to be loaded: what it takes in bytes, its longest context in tokens, and requests at once."""

    name: str
    device: str
    weight_bytes: int
    buffer_bytes: int
    page_bytes: int
    length: int
    slots: int
    parameters: int

    @property
    def fixed_bytes(self) -> int:
        """What it takes without any page."""
        return self.weight_bytes + self.buffer_bytes

    def bytes_at(self, length: int) -> int:
        """What it takes with one context of `length` tokens."""
        return self.fixed_bytes + -(-length // PAGE) * self.page_bytes


class Neighbour(msgspec.Struct, frozen=True):
    """A model on the same device, what it takes, and whether somebody asks it something."""

    name: str
    bytes: int
    busy: bool


def buffer_bytes(config: DecoderConfig, token_budget: int, slots: int) -> int:
    """About what a step takes beside weights and pages: activations of its tokens, and logits of its sequences."""
    heads = (config.heads + 2 * config.kv_heads) * config.head_dim
    activations = token_budget * (4 * config.hidden_size + 2 * config.ffn_size + heads)
    return FLOAT * (activations + 2 * slots * config.vocab_size)


def too_large(wish: Wish, least: int, free: int, neighbours: Sequence[Neighbour]) -> Overloaded:
    """Why a model cannot be loaded, with the numbers, and everything that would make it fit.

    It needs room for a context of `least` tokens.
    """
    need = wish.bytes_at(least)
    ways = [*_shorter(wish, least, free), *_without(need - free, neighbours), *_smaller(wish, need, free)]
    busy = any(neighbour.busy for neighbour in neighbours)
    return Overloaded(
        f"model '{wish.name}' needs {in_units(need)} on {wish.device} ({in_units(wish.weight_bytes)} of weights, "
        f"{in_units(need - wish.weight_bytes)} of buffers and pages for a context of {least} tokens), and "
        f"{in_units(max(0, free))} are free",
        remedy=f"it would fit {', or '.join(ways)}" if ways else "use a smaller model, or a device with more memory",
        retry_after=5.0 if busy else None,
    )


def _shorter(wish: Wish, least: int, free: int) -> list[str]:
    pages = (free - wish.fixed_bytes) // wish.page_bytes
    longest = min(least - 1, pages * PAGE)
    return [f"with context_length = {longest // PAGE * PAGE}"] if longest >= PAGE else []


def _without(missing: int, neighbours: Sequence[Neighbour]) -> list[str]:
    """The fewest models that would have to go, the largest first."""
    names: list[str] = []
    for neighbour in sorted(neighbours, key=lambda each: each.bytes, reverse=True):
        if missing <= 0:
            break
        missing -= neighbour.bytes
        names.append(f"'{neighbour.name}'" + (" (in use)" if neighbour.busy else ""))
    return [f"without {' and '.join(names)}"] if names and missing <= 0 else []


def _smaller(wish: Wish, need: int, free: int) -> list[str]:
    weights = int(SMALLEST * wish.parameters)
    if weights > WORTH * wish.weight_bytes or need - wish.weight_bytes + weights > free:
        return []
    return [f"in 4 bits (Q4_0: about {in_units(weights)} of weights)"]
