"""What sets a family of models apart from Llama: names, defaults, and how its files arrange the same tensors.

The kernels and `eager` compute from `DecoderConfig` and canonical tensors, so a family whose shape they know is added
by a file in `families/` that says where its files differ, and by a word in the list there.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Family", "Fused"]


class Fused(msgspec.Struct, frozen=True):
    """Canonical tensors of a layer that lie in one, their rows behind each other in the order of `parts`."""

    parts: tuple[str, ...]
    hf: str  # as safetensors name it, below the layer
    gguf: str  # as GGUF names it


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """One family.

    `qkv_bias`: queries, keys and values have biases, the output has none; otherwise all four have what the
    configuration's `attention_bias` says. `window`: a `sliding_window` in the configuration holds as it stands
    (`given`), or where `use_sliding_window` is set, from layer `max_window_layers` on (`switched`).
    """

    name: str
    hf_class: str
    in_gguf: bool = True  # whether GGUF files have it under its name; Mistral's are `llama`
    gguf_halves: bool = True  # whether they keep the rows of queries and keys in rotary halves; Llama's are in pairs
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = False  # whether embeddings are tied where the configuration does not say
    window: Literal["given", "switched"] = "switched"
    fused: tuple[Fused, ...] = ()

    def fused_part(self, part: str) -> Fused | None:
        """What a canonical tensor of a layer lies in; None for one that is by itself."""
        return next((fused for fused in self.fused if part in fused.parts), None)
