"""Cuts text into pieces that an encoder can take: at paragraphs, lines, sentences or words, the first there is.

A piece begins a little before the end of the one before it: a sentence that is cut is whole in one of the two.
"""

from __future__ import annotations

import msgspec

__all__ = ["LONGEST", "Piece", "pieces_of", "text_in"]

LONGEST = 900  # characters: 256 tokens, which small encoders take, are about a thousand in English
OVERLAP = 120  # characters
CUTS = ("\n\n", "\n", ". ", "! ", "? ", "。", "; ", ", ", " ")
LOOKED_AT = 8192  # bytes in which a zero tells that a file is no text


class Piece(msgspec.Struct, frozen=True):
    """A part of a text, and where its bytes are."""

    start: int
    stop: int
    text: str


def text_in(content: bytes) -> str | None:
    """What a file says; None where it is no text in UTF-8."""
    if b"\0" in content[:LOOKED_AT]:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def pieces_of(text: str) -> list[Piece]:
    """The pieces of a text that say something, in order."""
    found: list[Piece] = []
    place = at = 0  # in characters, and in bytes
    while place < len(text):
        end = _end(text, place)
        piece = text[place:end]
        if not piece.isspace():
            found.append(Piece(at, at + len(piece.encode()), piece))
        if end == len(text):
            break
        next_place = _begin(text, place, end)
        at += len(text[place:next_place].encode())
        place = next_place
    return found


def _end(text: str, place: int) -> int:
    """Where a piece ends that begins at a place: in its second half, so that none is tiny."""
    longest = place + LONGEST
    if longest >= len(text):
        return len(text)
    for cut in CUTS:
        found = text.rfind(cut, place + LONGEST // 2, longest)
        if found >= 0:
            return found + len(cut)
    return longest


def _begin(text: str, place: int, end: int) -> int:
    """Where the piece after one that ends at `end` begins: with a word before that end, or there."""
    word = text.find(" ", max(place + 1, end - OVERLAP), end)
    return end if word < 0 else word + 1
