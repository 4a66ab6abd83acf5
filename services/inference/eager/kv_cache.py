"""Keys and values of the running sequences, a slot each; hot: written and read in every layer, every step.

A layer is one tensor [2 (keys, values), slots, kv heads, length, head size], so that a step writes it with one
operation and attention reads slots 0 to n - 1 as a view. Slots and length grow in steps, to what is in use and not to
what could be. Running sequences are kept in the lowest slots: whoever removes one moves another into the gap.
"""

from __future__ import annotations

import torch

from services.inference.checkpoint.architecture import DecoderConfig

__all__ = ["KVCache", "token_bytes"]

STEP = 256  # tokens; growing copies everything, so the length also grows by at least a half


class KVCache:
    """Slots by tokens of keys and values. A position that was never written is zero."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        max_slots: int,
        max_length: int,
        max_tokens: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Nothing is allocated yet. `max_length` counts tokens of one sequence, `max_tokens` those of all slots."""
        self.max_slots = max_slots
        self.max_length = max_length
        self.max_tokens = max_tokens
        self.dtype = dtype
        self.slots = 0
        self.length = 0
        self._shape = (config.kv_heads, config.head_dim)
        self._token_bytes = token_bytes(config, dtype)
        self._layers = [self._empty(0, 0, device, dtype) for _ in range(config.layers)]

    @property
    def nbytes(self) -> int:
        """What is allocated."""
        return self.slots * self.length * self._token_bytes

    def fits(self, slots: int, length: int) -> bool:
        """Whether `reserve` would grant it."""
        return slots <= self.max_slots and length <= self.max_length and slots * length <= self.max_tokens

    def reserve(self, slots: int, length: int) -> None:
        """Make room for `slots` sequences of `length` tokens, keeping what is stored; `ValueError` over the limits."""
        if slots <= self.slots and length <= self.length:
            return
        if not self.fits(slots, length):
            raise ValueError(f"{slots} x {length} tokens are more than the cache may hold")
        # More than asked, so that growing is rare; what others gave up goes where both do not fit.
        more_slots = min(self.max_slots, max(slots, 2 * self.slots)) if slots > self.slots else self.slots
        more_length = self.length
        if length > self.length:
            more_length = min(self.max_length, -(-max(length, self.length * 3 // 2) // STEP) * STEP)
        if more_slots * more_length > self.max_tokens:
            more_slots = slots
            more_length = min(more_length, self.max_tokens // slots)
        self._resize(more_slots, more_length)

    def write(self, layer: int, slots: torch.Tensor, positions: torch.Tensor, kv: torch.Tensor) -> None:
        """Store `kv` [n, 2, kv heads, head size], one token each, at `positions` of `slots` (both int64 [n])."""
        self._layers[layer][:, slots, :, positions] = kv

    def write_chunk(self, layer: int, slot: int, start: int, kv: torch.Tensor) -> None:
        """Store `kv` [n, 2, kv heads, head size] at positions `start` and on of one slot."""
        self._layers[layer][:, slot, :, start : start + kv.shape[0]] = kv.permute(1, 2, 0, 3)

    def read(self, layer: int, slots: slice, tokens: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of keys and values: [slots, kv heads, tokens, head size] each."""
        both = self._layers[layer][:, slots, :, tokens]
        return both[0], both[1]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of slot `source` over those of slot `target`."""
        for layer in self._layers:
            layer[:, target, :, :length] = layer[:, source, :, :length]

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange the first `length` tokens of two slots."""
        for layer in self._layers:
            kept = layer[:, one, :, :length].clone()
            layer[:, one, :, :length] = layer[:, other, :, :length]
            layer[:, other, :, :length] = kept

    def clear(self, slot: int) -> None:
        """Zero a slot: a NaN left behind would reach later sequences, as a weight of 0 does not undo it."""
        for layer in self._layers:
            layer[:, slot] = 0

    def release(self) -> None:
        """Give all memory back; contents are lost."""
        self._resize(0, 0)

    def _resize(self, slots: int, length: int) -> None:
        kept_slots, kept_length = min(slots, self.slots), min(length, self.length)
        for index, old in enumerate(self._layers):  # layer by layer: at most one is held twice
            new = self._empty(slots, length, old.device, old.dtype)
            new[:, :kept_slots, :, :kept_length] = old[:, :kept_slots, :, :kept_length]
            self._layers[index] = new
        self.slots, self.length = slots, length

    def _empty(self, slots: int, length: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        heads, head_dim = self._shape
        with torch.inference_mode(mode=False):
            return torch.zeros(2, slots, heads, length, head_dim, device=device, dtype=dtype)


def token_bytes(config: DecoderConfig, dtype: torch.dtype) -> int:
    """What one token of one sequence takes in all layers."""
    return 2 * config.layers * config.kv_heads * config.head_dim * dtype.itemsize
