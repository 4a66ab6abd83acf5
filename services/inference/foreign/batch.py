"""States of several sequences as one, for steps of one token each; hot: where a sequence joins or leaves.

The states are merged when a step has other sequences than the last, and stay merged while it has the same. Shorter ones
are padded on the left, where a mask hides them; a recurrent state has no length and needs none.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

__all__ = ["merge", "split"]


def merge(states: Sequence[DynamicCache], lengths: Sequence[int]) -> DynamicCache:
    """One state with a row each, of sequences that have `lengths` tokens."""
    merged = copy.copy(states[0])
    merged.layers = [
        _merge_layer(layers, max(lengths)) for layers in zip(*(state.layers for state in states), strict=True)
    ]
    return merged


def split(merged: DynamicCache, lengths: Sequence[int]) -> list[DynamicCache]:
    """The rows as states of their own, which share no memory, of sequences that have `lengths` tokens now."""
    states = [copy.copy(merged) for _ in lengths]
    for row, (state, length) in enumerate(zip(states, lengths, strict=True)):
        state.layers = [_row(layer, row, length) for layer in merged.layers]
    return states


def _merge_layer(layers: Sequence[Any], longest: int) -> Any:
    merged = copy.copy(layers[0])
    if isinstance(merged, DynamicLayer) and merged.is_initialized:
        size = max(layer.keys.shape[-2] for layer in layers)
        merged.keys = torch.cat([_padded(layer.keys, size) for layer in layers])
        merged.values = torch.cat([_padded(layer.values, size) for layer in layers])
        if isinstance(merged, DynamicSlidingWindowLayer):
            merged.cumulative_length = longest
    elif isinstance(merged, LinearAttentionLayer):
        merged.has_previous_state = dict(merged.has_previous_state)
        for field in ("conv_states", "recurrent_states"):
            rows = [getattr(layer, field) for layer in layers]
            setattr(
                merged,
                field,
                {key: None if one is None else torch.cat([row[key] for row in rows]) for key, one in rows[0].items()},
            )
    return merged


def _row(layer: Any, row: int, length: int) -> Any:
    one = copy.copy(layer)
    if isinstance(one, DynamicLayer) and one.is_initialized:
        first = max(0, layer.keys.shape[-2] - length)  # what is before it is padding
        one.keys = layer.keys[row : row + 1, :, first:].clone()
        one.values = layer.values[row : row + 1, :, first:].clone()
        if isinstance(one, DynamicSlidingWindowLayer):
            one.cumulative_length = length
    elif isinstance(one, LinearAttentionLayer):
        one.has_previous_state = dict(one.has_previous_state)
        for field in ("conv_states", "recurrent_states"):
            rows = getattr(layer, field)
            setattr(
                one,
                field,
                {key: None if value is None else value[row : row + 1].clone() for key, value in rows.items()},
            )
    return one


def _padded(values: torch.Tensor, size: int) -> torch.Tensor:
    """`values` [1, heads, n, head size] with zeros before, so that there are `size`."""
    return functional.pad(values, (0, 0, size - values.shape[-2], 0))
