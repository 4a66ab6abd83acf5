"""Content keys: chained, unambiguous, and the same tomorrow as today."""

from __future__ import annotations

import struct
import sys
from array import array
from hashlib import blake2b

import pytest

from microkernel.errors import Invalid
from services.inference.cache.keys import PAGE, page_keys, serialised

TOKENS = [(position * 7919) % 150_000 for position in range(3 * PAGE)]


def test_keys_are_chained_as_the_module_says():
    root = blake2b(
        struct.pack("<Q", 5) + b"model" + struct.pack("<Q", 5) + b"alice", digest_size=32, person=b"kv page root"
    )
    first = blake2b(root.digest() + struct.pack("<16i", *TOKENS[:16]), digest_size=32)
    second = blake2b(first.digest() + struct.pack("<16i", *TOKENS[16:32]), digest_size=32)
    assert page_keys(b"model", "alice", TOKENS[:40]) == [first.digest(), second.digest()]


def test_keys_of_pages_saved_by_earlier_versions_are_still_found():
    saved = "b3531980d2a69f7cd28477dc1538317f0b767296a9ac6b984caabbdd805f6dec"
    assert page_keys(b"model", "alice", range(PAGE))[0].hex() == saved


def test_a_page_that_is_not_full_has_no_key():
    assert page_keys(b"model", "alice", TOKENS[: PAGE - 1]) == []
    assert len(page_keys(b"model", "alice", TOKENS[: 2 * PAGE - 1])) == 1


def test_longer_prompts_go_on_from_the_keys_of_their_prefix():
    assert page_keys(b"model", "alice", TOKENS)[:2] == page_keys(b"model", "alice", TOKENS[: 2 * PAGE])


def test_the_same_tokens_behind_other_ones_have_another_key():
    behind_zeros = page_keys(b"model", "alice", [0] * PAGE + TOKENS[:PAGE])
    behind_ones = page_keys(b"model", "alice", [1] * PAGE + TOKENS[:PAGE])
    assert behind_zeros[1] != behind_ones[1]


def test_owners_and_spaces_never_share_a_key():
    pairs = [(b"", "ab"), (b"a", "b"), (b"ab", ""), (b"b", "a"), (b"", ""), (b"a\0", "b"), (b"a", "\0b")]
    assert len({page_keys(space, owner, TOKENS)[0] for space, owner in pairs}) == len(pairs)


@pytest.mark.skipif(sys.byteorder == "big", reason="a big-endian machine is what is played here")
def test_a_big_endian_machine_finds_the_same_keys(monkeypatch):
    expected = serialised(array("i", TOKENS))
    there = array("i", TOKENS)
    there.byteswap()  # how such a machine has them in memory
    monkeypatch.setattr(sys, "byteorder", "big")
    assert serialised(there) == expected


@pytest.mark.parametrize("token", [2**31, -(2**31) - 1, 0.5, "a"])
def test_a_token_that_is_no_32_bit_number_is_refused(token):
    with pytest.raises(Invalid, match="32-bit"):
        page_keys(b"model", "alice", [1, token])
