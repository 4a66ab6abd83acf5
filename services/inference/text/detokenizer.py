"""Hot, once a token: turns tokens into text piece by piece, never showing half a character.

Tokens are byte strings that may end inside a UTF-8 character. Python's incremental decoder holds such bytes
back until the character is complete or can no longer be, in which case they become U+FFFD, exactly as when
decoding all at once.
"""

from __future__ import annotations

import codecs

from formats.text.tokenizer import Tokenizer

__all__ = ["IncrementalText"]


class IncrementalText:
    """The text of one answer as it grows; all that it returns, joined, is `tokenizer.decode` of all tokens.

    Control tokens are not shown. `continues` says that text stands before the answer, as when a text is
    completed: a first space is kept then (see `Tokenizer.strips_space`).
    """

    def __init__(self, tokenizer: Tokenizer, *, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strips_space = tokenizer.strips_space and not continues

    def push(self, token: int) -> str:
        """The text that is complete with `token`; empty while a character is not."""
        if token in self._tokenizer.special_ids:
            return ""
        raw = self._tokenizer.token_bytes(token)
        if self._strips_space and raw:
            raw = raw.removeprefix(b" ")
            self._strips_space = False
        return self._decoder.decode(raw)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed."""
        return self._decoder.decode(b"", final=True)
