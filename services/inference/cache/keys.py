"""Content keys: pages of equal keys hold equal numbers, in memory and on disk; hot: runs once a page.

The key of a page is chained, as its numbers depend on all tokens before it:

    key[-1] = H(space, owner)        key[i] = H(key[i - 1], tokens of page i as little-endian int32)

H is BLAKE2b with 32 bytes. The owner is part of it, so a prefix is found by its own owner only, and nobody can learn
from the time to the first token what another has asked. Stable: what was saved under a key is looked for by it later.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from hashlib import blake2b

from microkernel.errors import Invalid

__all__ = ["PAGE", "PAGE_BYTES", "bad_token", "packed", "page_key", "page_keys", "root_key", "serialised"]

PAGE = 16  # tokens
PAGE_BYTES = 4 * PAGE  # of a page's tokens as they are hashed


def page_keys(space: bytes, owner: str, tokens: Sequence[int]) -> list[bytes]:
    """The keys of all full pages of `tokens`. `space` names what else the numbers depend on: model, layout, adapter."""
    content = serialised(packed(tokens))
    keys = [root_key(space, owner)]
    for start in range(0, len(tokens) // PAGE * PAGE_BYTES, PAGE_BYTES):
        keys.append(page_key(keys[-1], content[start : start + PAGE_BYTES]))
    return keys[1:]


def root_key(space: bytes, owner: str) -> bytes:
    """What the first page's key is chained to. Each part follows its length, so no two pairs read the same."""
    name = owner.encode()
    parts = len(space).to_bytes(8, "little") + space + len(name).to_bytes(8, "little") + name
    return blake2b(parts, digest_size=32, person=b"kv page root").digest()


def page_key(previous: bytes, content: bytes) -> bytes:
    """The key of the page of `content`, its serialised tokens, behind the one of key `previous`."""
    return blake2b(previous + content, digest_size=32).digest()


def packed(tokens: Sequence[int]) -> array[int]:
    """Tokens at 4 bytes each; `Invalid` if one is no int32."""
    try:
        return array("i", tokens)
    except (OverflowError, TypeError) as error:
        raise bad_token(error) from error


def bad_token(error: Exception) -> Invalid:
    """What to raise for tokens that an array does not take."""
    return Invalid(f"a token is not a 32-bit number: {error}", field="tokens", remedy="check tokens against the model")


def serialised(tokens: array[int]) -> bytes:
    """Tokens as they are hashed, the same on all machines."""
    if sys.byteorder == "big":
        tokens = tokens[:]
        tokens.byteswap()
    return tokens.tobytes()
