"""A context: what a generation needs to go on elsewhere or later, exactly, as one piece of bytes.

Its request, its answer so far, how many random numbers that took, and the pages of its keys and values. What the
sampler counts follows from the tokens, and is counted again. The bytes:

    "mkcontext" version | u64 length of the head | head, MessagePack | pages | BLAKE2b of all before, 32 bytes
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import msgspec

from microkernel.errors import DataLoss, PreconditionFailed
from services.inference.engine.sequence import Request

__all__ = ["Context"]

MAGIC = b"mkcontext\x01"
DIGEST = 32
WORD = 8


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """One generation, at rest. `pages` hold the keys and values of its first `length` tokens.

    `space` names the model, and how its pages are laid out and computed: it goes on where that is the same.
    """

    space: bytes
    request: Request
    answer: tuple[int, ...]
    draws: int
    length: int
    pages: Sequence[bytes]

    def dump(self) -> bytes:
        """As bytes, which `load` takes."""
        head = _encoder.encode(
            _Head(
                space=self.space,
                request=self.request,
                answer=self.answer,
                draws=self.draws,
                length=self.length,
                pages=len(self.pages),
            )
        )
        whole = b"".join((MAGIC, len(head).to_bytes(WORD, "little"), head, *self.pages))
        return whole + _digest(whole)

    @staticmethod
    def load(content: bytes) -> Context:
        """What `dump` gave. Raises `DataLoss` where a byte differs, `PreconditionFailed` for another version."""
        view = memoryview(content)
        start = len(MAGIC) + WORD
        if len(view) < start + DIGEST or _digest(view[:-DIGEST]) != view[-DIGEST:]:
            raise DataLoss("the context is damaged", remedy="it cannot be restored: ask again")
        if view[: len(MAGIC)] != MAGIC:
            raise PreconditionFailed("the context was saved by another version", remedy="ask again")
        end = start + int.from_bytes(view[len(MAGIC) : start], "little")
        try:
            head = _decoder.decode(view[start:end])
        except msgspec.DecodeError as error:
            raise PreconditionFailed(
                f"the context was saved by another version: {error}", remedy="ask again"
            ) from error
        rest = view[end:-DIGEST]
        size = len(rest) // max(1, head.pages)
        return Context(
            space=head.space,
            request=head.request,
            answer=head.answer,
            draws=head.draws,
            length=head.length,
            pages=[bytes(rest[place * size : (place + 1) * size]) for place in range(head.pages)],
        )


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    space: bytes
    request: Request
    answer: tuple[int, ...]
    draws: int
    length: int
    pages: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Head)


def _digest(content: bytes | memoryview) -> bytes:
    return blake2b(content, digest_size=DIGEST).digest()
