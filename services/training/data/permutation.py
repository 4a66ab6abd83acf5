"""A permutation of [0, n) that is computed and not stored, and its inverse; hot: for every row of a step.

An unbalanced Feistel network on as many bits as n - 1 has, keyed by the seed and the epoch; a result that is not below
n goes through it again, which ends below n, after less than two rounds on average (cycle walking: Black and Rogaway,
https://doi.org/10.1007/3-540-45760-7_9). Its rounds mix as SplitMix64 does (https://doi.org/10.1145/2714064.2660195).
Only integers of 64 bits: the same on every machine, for ever. It shuffles; it is no cipher.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LARGEST", "permuted", "place_of"]

LARGEST = 1 << 48
ROUNDS = 8
GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1

Words = NDArray[np.uint64]


def permuted(places: NDArray[np.int64], epochs: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """What is at each of `places` of [0, count) in its epoch's permutation. All int64, of one shape."""
    return _walk(places, epochs, count, seed, range(ROUNDS))


def place_of(values: NDArray[np.int64], epochs: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """The inverse: at which place each of `values` is in its epoch's permutation."""
    return _walk(values, epochs, count, seed, range(ROUNDS - 1, -1, -1))


def _walk(
    values: NDArray[np.int64], epochs: NDArray[np.int64], count: int, seed: int, rounds: range
) -> NDArray[np.int64]:
    assert 0 < count <= LARGEST, count
    bits = max(2, (count - 1).bit_length())
    keys = _mix(epochs.astype(np.uint64) ^ np.uint64(_mix_number(seed & MASK)))
    result = _network(values.astype(np.uint64), keys, bits, rounds)
    while (outside := np.flatnonzero(result >= count)).size:
        result[outside] = _network(result[outside], keys[outside], bits, rounds)
    return result.astype(np.int64)


def _network(words: Words, keys: Words, bits: int, rounds: range) -> Words:
    """Every round changes one half by what the other one is: done backwards, it is undone."""
    low = np.uint64(bits // 2)
    low_mask, high_mask = np.uint64((1 << (bits // 2)) - 1), np.uint64((1 << (bits - bits // 2)) - 1)
    left, right = words >> low, words & low_mask
    for number in rounds:
        key = keys + np.uint64(GOLDEN * (number + 1) & MASK)
        if number % 2:
            left = left ^ (_mix(right + key) & high_mask)
        else:
            right = right ^ (_mix(left + key) & low_mask)
    return (left << low) | right


def _mix(words: Words) -> Words:
    """SplitMix64's last steps: each bit of the result hangs on all of the word."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _mix_number(word: int) -> int:
    """`_mix` of a single number, whose overflow numpy would warn of."""
    return int(_mix(np.array([word + GOLDEN & MASK], dtype=np.uint64))[0])
