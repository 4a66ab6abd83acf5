"""Examples: a record as tokens, with a mark at each that is learned.

A text is learned whole. Of a completion, and of a chat, only what the model is to say itself, with the token that ends
it: a loss on prompts as well teaches a model to ask (https://arxiv.org/abs/2405.14394 measures when that helps; with
few examples, which is not what a default is for). The first token of an example has nothing before it that it could be
learned from, so it never has a mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from formats.text.template import ChatTemplate, open_template
from formats.text.tokenizer import Tokenizer
from microkernel.errors import Invalid
from services.training.data.answers import find_answers
from services.training.data.records import Chat, Completion, Kind, Record, Text

__all__ = ["Example", "Examples"]

Span = tuple[int, int]


class Example(NamedTuple):
    """`tokens` (int64 [n]) and which of them are `learned` (bool [n]); the last one is."""

    tokens: NDArray[np.int64]
    learned: NDArray[np.bool_]


class Examples:
    """Makes examples of records, with a model's tokenizer and chat template. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, kind: Kind) -> None:
        """Raises `Invalid` for chats where the model has no template for them."""
        self._tokenizer = tokenizer
        self._end = end_of_text(tokenizer)
        self._template: ChatTemplate | None = open_template(tokenizer) if kind == "chat" else None

    def of(self, record: Record) -> list[Example]:
        """The examples in a record: one, or several where a chat template writes a conversation anew for each answer.

        Raises `Invalid`, in words that follow the record's place, for what the template or the tokenizer refuses.
        """
        match record:
            case Text(text):
                return [self._text(text)]
            case Completion(prompt, completion):
                return [self._completion(prompt, completion)]
            case Chat(messages):
                assert self._template is not None
                found = find_answers(self._tokenizer, self._template, messages)
                return [_example(tokens, spans) for tokens, spans in found]

    def _text(self, text: str) -> Example:
        tokenizer = self._tokenizer
        tokens = tokenizer.encode(text, add_bos=tokenizer.add_bos, parse_special=False) + self._end
        return _example(tokens, [(1, len(tokens))])

    def _completion(self, prompt: str, completion: str) -> Example:
        """Where the tokens of both together do not begin with those of the prompt, a word spans the border.

        A byte-level tokenizer then encodes each on its own, as at inference, where the prompt comes alone.
        SentencePiece would put a space before the completion: there the token that spans the border is learned.
        """
        tokenizer = self._tokenizer
        begin = tokenizer.encode(prompt, add_bos=tokenizer.add_bos, parse_special=False)
        tokens = tokenizer.encode(prompt + completion, add_bos=tokenizer.add_bos, parse_special=False)
        if tokens[: len(begin)] != begin and not tokenizer.strips_space:
            tokens = begin + tokenizer.encode(completion, add_bos=False, parse_special=False)
        start = common_prefix(begin, tokens)
        tokens += self._end
        return _example(tokens, [(start, len(tokens))])


def end_of_text(tokenizer: Tokenizer) -> list[int]:
    """The token that ends a text: the one the model's files call so, else the first of those that end an answer."""
    named = tokenizer.special_tokens.get(tokenizer.template_tokens.get("eos_token", ""))
    if named is not None:
        return [named]
    return sorted(tokenizer.eos_ids)[:1]


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _example(tokens: Sequence[int], spans: Sequence[Span]) -> Example:
    """What stands behind the last learned token is left out: nothing would be learned from it."""
    end = max(stop for _, stop in spans)
    learned = np.zeros(end, dtype=np.bool_)
    for start, stop in spans:
        learned[max(1, start) : stop] = True
    if not learned.any():
        raise Invalid("has nothing to learn: a single token has none before it")
    return Example(np.array(tokens[:end], dtype=np.int64), learned)
