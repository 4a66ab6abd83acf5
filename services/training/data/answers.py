"""Finds what the assistant says among the tokens of a chat, for any template, and never a word of another's.

A template is a program, and nothing in it says where an answer begins. But there are two renderings: up to an answer
with the generation prompt, which is what the model is given at inference, and up to and with the answer. Where the
first begins the second, what follows is the answer, up to the last token that ends a turn.

Templates may write a turn in another way once others follow: Qwen 3 leaves out the thoughts of earlier answers. An
answer is learned as it is written when it is the last one; it shares an example with later answers if that example
begins with the very same tokens, and otherwise gets one of its own. So a chat becomes one example with most templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from formats.text.template import ChatTemplate, Segment, encode_prompt
from formats.text.tokenizer import Tokenizer
from microkernel.errors import Invalid
from services.training.data.records import ChatTurn

__all__ = ["find_answers"]


class _Answer(NamedTuple):
    """An answer: the conversation up to its end, and where it begins in it."""

    tokens: list[int]
    start: int


def find_answers(
    tokenizer: Tokenizer, template: ChatTemplate, turns: Sequence[ChatTurn]
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Examples as tokens with the spans of answers in them: every answer that is to be learned is in one example.

    An answer that opens the conversation answers nothing: it is context. Raises `Invalid`, in words that follow the
    chat's place, where the template refuses, or writes an answer so that it cannot be told from what is before it.
    """
    places = [place for place, turn in enumerate(turns) if place and turn.role == "assistant" and turn.learned]
    left = [_answer(tokenizer, template, turns, place) for place in places]
    examples = []
    while left:
        last = left.pop()
        spans = [(last.start, len(last.tokens))]
        apart = []
        for answer in left:
            if last.tokens[: len(answer.tokens)] == answer.tokens and len(answer.tokens) <= last.start:
                spans.append((answer.start, len(answer.tokens)))
            else:
                apart.append(answer)
        examples.append((last.tokens, sorted(spans)))
        left = apart
    return examples[::-1]


def _answer(tokenizer: Tokenizer, template: ChatTemplate, turns: Sequence[ChatTurn], place: int) -> _Answer:
    """The answer at `place`, with what is before it.

    Its own tokens are encoded apart from those of the prompt, as a model writes them: a line break that begins it would
    else be one token with that which ends the prompt. Not with SentencePiece, which would put a space before it.
    """
    question = template.render(turns[:place])
    both = template.render(turns[: place + 1], add_generation_prompt=False)
    asked = encode_prompt(tokenizer, question)
    start = len(asked)
    behind = None if tokenizer.strips_space else _behind(question, both)
    if behind is not None:
        tokens = asked + tokenizer.encode_parts(behind, add_bos=False)
    else:
        tokens = encode_prompt(tokenizer, both)
        if tokens[:start] != asked:
            start = _parting(tokenizer, template, turns[:place], asked, tokens)
    end = _end(tokenizer, tokens, start)
    if end <= start:
        raise Invalid(f"has an answer, messages[{place}], that the model's chat template leaves out")
    return _Answer(tokens[:end], start)


def _behind(question: Sequence[Segment], both: Sequence[Segment]) -> list[tuple[str, bool]] | None:
    """What stands in `both` behind `question`, as parts to encode; None where `both` does not begin with it."""
    first, whole = _joined(question), _joined(both)
    *same, (last, parse) = first
    place = len(same)
    if len(whole) <= place or whole[:place] != same:
        return None
    text, parsed = whole[place]
    if parsed != parse or not text.startswith(last):
        return None
    return [(text[len(last) :], parse), *whole[place + 1 :]]


def _joined(segments: Sequence[Segment]) -> list[tuple[str, bool]]:
    groups = groupby(segments, key=attrgetter("parse_special"))
    return [("".join(segment.text for segment in group), parse) for parse, group in groups]


def _parting(
    tokenizer: Tokenizer, template: ChatTemplate, turns: Sequence[ChatTurn], asked: list[int], tokens: list[int]
) -> int:
    """Where an answer begins that has not all of the generation prompt before it, which may open thoughts.

    All that is before the generation prompt has to be the same, but for an end of the text that templates put behind a
    conversation from which nothing is asked: or what follows is not the answer alone.
    """
    before = encode_prompt(tokenizer, template.render(turns, add_generation_prompt=False))
    while before and before[-1] in tokenizer.eos_ids:
        before.pop()
    agreed = 0
    while agreed < min(len(asked), len(tokens)) and asked[agreed] == tokens[agreed]:
        agreed += 1
    if agreed < len(before) or tokens[: len(before)] != before:
        raise Invalid(
            f"has an answer, messages[{len(turns)}], that the model's chat template does not write behind its prompt"
        )
    return agreed


def _end(tokenizer: Tokenizer, tokens: list[int], start: int) -> int:
    """Behind the last token that ends a turn; behind the answer where the template writes none.

    Of several with nothing but space between them the first: Phi-3 ends a turn and then, if it is the last, the text.
    """
    ends = [place for place in range(start, len(tokens)) if tokens[place] in tokenizer.eos_ids]
    if not ends:
        return len(tokens)
    end = ends.pop()
    while ends and not tokenizer.decode(tokens[ends[-1] + 1 : end], continues=True).strip():
        end = ends.pop()
    return end + 1
