"""Texts as an encoder's tokens, cut to the longest that it takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
import tokenizers
from tokenizers.pre_tokenizers import BertPreTokenizer

from formats.text.hf_tokenizer import read_folder
from formats.text.tokenizer_definition import library_errors

__all__ = ["TextTokens", "Tokenized", "open_tokens"]

AT_ONCE = 256  # texts that the library's threads share before another batch of them begins
BEGIN = 16  # characters for each token of the longest text that are looked at first, of longer texts
SPACE = re.compile(r"[ \n]")  # what every normalizer leaves between words


class Tokenized(msgspec.Struct, frozen=True):
    """The tokens of texts, each with those of its begin and end; of `truncated` texts the end was left out."""

    ids: list[list[int]]
    truncated: int

    @property
    def count(self) -> int:
        """All tokens."""
        return sum(map(len, self.ids))


class TextTokens:
    """The tokenizer of an encoder; for any thread, since nothing of it changes."""

    def __init__(self, library: tokenizers.Tokenizer, longest: int, source: str) -> None:
        """`longest` counts the tokens of a text with those of its begin and end; `source` names it in errors."""
        self._library = library
        self._longest = longest
        self._source = source
        # Where a word is what stands between spaces, what follows one changes no token before it.
        self._by_words = isinstance(library.pre_tokenizer, BertPreTokenizer)
        self._added = library.num_special_tokens_to_add(is_pair=False)

    @property
    def vocab_size(self) -> int:
        """One more than the largest number of a token."""
        return 1 + max(self._library.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, texts: Sequence[str]) -> Tokenized:
        """The tokens of all texts, in their order; takes 0.1 s for a megabyte. Raises `DataLoss`."""
        ids: list[list[int]] = []
        truncated = 0
        for first in range(0, len(texts), AT_ONCE):
            for one in self._batch(texts[first : first + AT_ONCE]):
                truncated += len(one) > self._longest
                ids.append(self._cut(one))
        return Tokenized(ids, truncated)

    def _batch(self, texts: Sequence[str]) -> list[list[int]]:
        begins = [self._begin(text) for text in texts]
        found = self._encode(begins)
        unsure = [
            place
            for place, (text, begin) in enumerate(zip(texts, begins, strict=True))
            if len(begin) < len(text) and len(found[place]) <= self._longest
        ]
        for place, whole in zip(unsure, self._encode([texts[place] for place in unsure]), strict=True):
            found[place] = whole
        return found

    def _begin(self, text: str) -> str:
        """As much of a long text as surely has all the tokens that count, up to a space; or all of it."""
        if not self._by_words or len(text) <= (most := BEGIN * self._longest):
            return text
        for space in SPACE.finditer(text, most):
            return text[: space.start()]
        return text

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        with library_errors(f"{self._source} does not work"):
            return [encoding.ids for encoding in self._library.encode_batch_fast(texts)]

    def _cut(self, ids: list[int]) -> list[int]:
        """At most `longest` of a text's tokens; the last one stays what marks its end."""
        if len(ids) <= self._longest:
            return ids
        return ids[: self._longest - 1] + ids[-1:] if self._added > 1 else ids[: self._longest]


def open_tokens(folder: Path, longest: int) -> TextTokens:
    """The tokenizer of `folder`. Raises `NotFound`, `Invalid` or `DataLoss`."""
    definition = read_folder(folder)
    return TextTokens(definition.library, longest, definition.source)
