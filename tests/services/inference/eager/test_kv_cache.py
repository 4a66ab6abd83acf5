"""The cache: what is written is read, growing keeps it, and limits are kept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.checkpoint.architecture import DecoderConfig
from services.inference.eager.kv_cache import KVCache, token_bytes

CONFIG = DecoderConfig(
    architecture="llama",
    layers=2,
    hidden_size=8,
    heads=2,
    kv_heads=2,
    head_dim=4,
    ffn_size=8,
    vocab_size=8,
    context_length=4096,
)


def new_cache(max_slots: int = 4, max_length: int = 4096, max_tokens: int = 1 << 20) -> KVCache:
    return KVCache(
        CONFIG,
        max_slots=max_slots,
        max_length=max_length,
        max_tokens=max_tokens,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def test_what_was_written_is_read_after_the_cache_has_grown():
    cache = new_cache()
    cache.reserve(1, 10)
    chunk = torch.randn(7, 2, 2, 4)
    cache.write_chunk(1, 0, 3, chunk)
    cache.reserve(3, 1000)
    one = torch.randn(2, 2, 2, 4)
    cache.write(1, torch.tensor([0, 2]), torch.tensor([10, 999]), one)
    keys, values = cache.read(1, slice(0, 1), slice(3, 11))
    expected = torch.cat((chunk, one[:1])).permute(1, 2, 0, 3)
    assert torch.equal(keys[0], expected[0])
    assert torch.equal(values[0], expected[1])
    assert torch.equal(cache.read(1, slice(2, 3), slice(999, 1000))[0][0, :, 0], one[1, 0])
    assert not cache.read(0, slice(0, 3), slice(0, 1000))[0].any()


def test_moving_a_slot_takes_its_tokens_along_and_clearing_leaves_zeros():
    cache = new_cache()
    cache.reserve(2, 10)
    chunk = torch.randn(5, 2, 2, 4)
    for layer in range(2):
        cache.write_chunk(layer, 1, 0, chunk)
    cache.move(1, 0, 5)
    cache.clear(1)
    assert torch.equal(cache.read(0, slice(0, 1), slice(0, 5))[1][0], chunk[:, 1].transpose(0, 1))
    assert not cache.read(0, slice(1, 2), slice(0, 10))[0].any()


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 600)), min_size=1, max_size=8))
@settings(deadline=None)
def test_room_is_granted_up_to_the_limits_and_never_beyond_them(wishes):
    cache = new_cache(max_slots=5, max_length=512, max_tokens=1024)
    for slots, length in wishes:
        if cache.fits(slots, length):
            cache.reserve(slots, length)
            assert cache.slots >= slots
            assert cache.length >= length
        else:
            with pytest.raises(ValueError, match=f"{slots} x {length}"):
                cache.reserve(slots, length)
        assert cache.slots * cache.length <= 1024
        assert cache.nbytes == cache.slots * cache.length * token_bytes(CONFIG, torch.float32)


def test_released_memory_is_given_back():
    cache = new_cache()
    cache.reserve(2, 100)
    assert cache.nbytes == sum(layer.nbytes for layer in cache._layers) > 0
    cache.release()
    assert cache.nbytes == sum(layer.nbytes for layer in cache._layers) == 0
