"""Where an answer stands in its grammar, and which tokens may come next; hot: once a token, on the device's thread."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from microkernel.errors import Invalid

__all__ = ["CompiledGrammar", "Matcher", "in_one_line"]


class CompiledGrammar:
    """A grammar over a model's tokens; many answers may follow it at once."""

    __slots__ = ("_beginning", "vocab_size")

    def __init__(self, beginning: LLMatcher, vocab_size: int) -> None:
        self._beginning = beginning
        self.vocab_size = vocab_size

    def start(self, tokens: Iterable[int] = ()) -> Matcher:
        """A matcher after `tokens`, the answer so far: exactly as one that saw them come. 10 us, and 20 a token."""
        matcher = Matcher(self._beginning.deep_copy(), self.vocab_size)
        for token in tokens:
            matcher.advance(token)
        return matcher


class Matcher:
    """One answer's place in its grammar. Not thread-safe."""

    __slots__ = ("_matcher", "_vocab_size", "_words")

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._words = np.zeros(vocab_size // 32 + 1, dtype=np.int32)  # one bit more: that for the end

    @property
    def complete(self) -> bool:
        """Whether the text fits the grammar and nothing may follow it."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def fill(self, bits: NDArray[np.uint8]) -> bool:
        """Set the bit of each token that may come next; whether the text may end instead.

        `bits` has a bit for each token of the vocabulary, lowest first, in whole bytes. Raises `Invalid` where the
        grammar asks for too much, or for something that no token can begin.
        """
        if self._matcher.is_stopped() and not self._matcher.is_error():
            bits[:] = 0
            return True
        words = self._words
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if self._matcher.is_error():
            raise self._failed()
        of_bytes = words.view(np.uint8)
        byte, bit = divmod(self._vocab_size, 8)
        ends = bool(of_bytes[byte] >> bit & 1)
        of_bytes[byte] &= (1 << bit) - 1
        bits[:] = of_bytes[: len(bits)]
        return ends

    def advance(self, token: int) -> None:
        """Take `token` as the next one. One that was not allowed makes every later `fill` raise."""
        if not self._matcher.is_error():
            self._matcher.consume_token(token)

    def _failed(self) -> Invalid:
        why = in_one_line(self._matcher.get_error())
        if why.startswith("NoExtension"):
            return Invalid("the grammar allows nothing after what was generated", field="grammar")
        return Invalid(f"the grammar cannot be followed: {why}", field="grammar", remedy="simplify the grammar")


def in_one_line(error: str) -> str:
    """The library's message without the state that it appends, on one line."""
    text = error.partition("\n<")[0]
    return " ".join(text.split())[:300]
