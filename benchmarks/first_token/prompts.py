"""Prompts that no cache has seen: each begins with a number of its own, so none shares a prefix with another.

The answers are to be long: the model is asked for a long story, which even a small one does not end within 128 tokens.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path

from benchmarks.first_token.contender import Prompt

__all__ = ["Prompts"]

# One token each in the vocabularies that we know, with the space before it.
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")


class Prompts:
    """Makes prompts for the model in `path`, with its own tokenizer and template."""

    def __init__(self, path: Path) -> None:
        from formats.checkpoint.checkpoint import open_checkpoint
        from formats.text.template import open_template
        from formats.text.tokenizer import open_tokenizer

        self._tokenizer = open_tokenizer(open_checkpoint(path).tokenizer_source)
        self._template = open_template(self._tokenizer)
        self._numbers = itertools.count(100_000)

    def short(self, count: int = 1) -> list[Prompt]:
        """`count` different prompts of some 40 tokens, all of the same length."""
        return [self._make(next(self._numbers), words=0) for _ in range(count)]

    def long(self, tokens: int) -> Prompt:
        """A prompt of `tokens` tokens, or a few more."""
        number = next(self._numbers)
        words = 0
        while (missing := tokens - len(self._make(number, words).ids)) > 0:
            words += missing
        return self._make(number, words)

    def _make(self, number: int, words: int) -> Prompt:
        from formats.text.template import encode_prompt
        from microkernel.message import convert
        from services.inference.messages import ChatMessage

        choose = random.Random(number)
        filler = " ".join(choose.choice(WORDS) for _ in range(words))
        messages = [
            # The first token that differs is the first one that could.
            {
                "role": "system",
                "content": f"{number} is your number." + (f" Ignore these words: {filler}." if words else ""),
            },
            {
                "role": "user",
                "content": "Write a very long story about a ship that sails around the world, with many details.",
            },
        ]
        rendered = self._template.render([convert(message, ChatMessage) for message in messages])
        return Prompt(messages, encode_prompt(self._tokenizer, rendered))
