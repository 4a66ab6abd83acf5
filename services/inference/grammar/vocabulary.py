"""A model's tokens as the grammar library sees them: byte strings, and one more that stands for the end."""

from __future__ import annotations

from functools import cached_property

from llguidance import LLTokenizer

from formats.text.tokenizer import Tokenizer

__all__ = ["open_vocabulary"]

# Before a text it takes up the space that SentencePiece puts in front; no vocabulary merges it with anything.
MARK = "\x02"


def open_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> LLTokenizer:
    """The library's tree of all tokens; takes a quarter of a second for 50,000 tokens.

    Its token `vocab_size` is no token of the model: where it is allowed, the text may end. A model may have several
    tokens that end an answer, other ones in each request, or none.
    """
    return LLTokenizer(
        _Tokens(tokenizer, vocab_size),  # type: ignore[arg-type] # takes any object with these names
        n_vocab=vocab_size + 1,
        eos_token=vocab_size,
    )


class _Tokens:
    """What the library asks a tokenizer: the bytes of each token, and how a text that must come now is best cut."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)] + [b"<|end|>"]
        self.eos_token_id = vocab_size
        self.special_token_ids = [*sorted(tokenizer.special_ids), vocab_size]

    def __call__(self, text: str) -> list[int]:
        wanted = text.encode()
        for before in ("", MARK):
            ids = self._tokenizer.encode(before + text, add_bos=False, parse_special=False)
            rest = b"".join(self.tokens[token] for token in ids)
            while before and ids and len(rest) > len(wanted):
                rest = rest.removeprefix(self.tokens[ids.pop(0)])
            if rest == wanted:
                return ids
        return self._longest_first(wanted)

    def _longest_first(self, wanted: bytes) -> list[int]:
        """For a text that the model's own encoder changes, such as accents that it composes."""
        ids = []
        start = 0
        while start < len(wanted):
            ends = range(min(len(wanted), start + self._longest), start, -1)
            end = next((end for end in ends if wanted[start:end] in self._token_of), None)
            if end is None:
                raise ValueError(f"no token writes the byte {wanted[start]:#04x}")
            ids.append(self._token_of[wanted[start:end]])
            start = end
        return ids

    @cached_property
    def _token_of(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {raw: token for token, raw in enumerate(self.tokens) if raw and token not in special}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._token_of), default=0)
