"""Chat templates: a conversation becomes the prompt that a model was trained on; no message forges its marks.

A model brings its template (jinja2, as in Hugging Face's `chat_template`); it runs in `TemplateSandbox`.
Templates look into messages, trim them and cut them, so messages are given to them as they are, but for one
thing: where a text has the name of a control token in it ("<|im_end|>"), a private mark is put behind each
character of the name. The template treats it as the text that it is; after rendering, marked characters are
told from the template's own, and are encoded as ordinary text. All other prompts are, token by token, what
the template's author meant.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from jinja2.exceptions import TemplateError, TemplateSyntaxError

from formats.text.template_sandbox import TemplateSandbox
from formats.text.tokenizer import Tokenizer
from microkernel.errors import Invalid

__all__ = ["ChatTemplate", "Segment", "Turn", "encode_prompt", "open_template"]

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = range(0x10F000, 0x10FFFE)  # private use: no text means anything by them


class Turn(Protocol):
    """A message of a conversation; `inference.chat` takes messages of this form."""

    @property
    def role(self) -> str: ...
    @property
    def content(self) -> str | list[dict[str, Any]] | None: ...
    @property
    def name(self) -> str | None: ...
    @property
    def tool_call_id(self) -> str | None: ...
    @property
    def tool_calls(self) -> list[dict[str, Any]] | None: ...


class Segment(msgspec.Struct, frozen=True):
    """A part of a prompt; `parse_special` says whether names of control tokens in it are such tokens."""

    text: str
    parse_special: bool


def open_template(tokenizer: Tokenizer) -> ChatTemplate:
    """The model's chat template, or ChatML where the model has none but has ChatML's tokens.

    Raises `Invalid` where it has neither, or where the template does not compile.
    """
    source = tokenizer.chat_template
    if source is None:
        if not {"<|im_start|>", "<|im_end|>"} <= tokenizer.special_tokens.keys():
            raise Invalid(
                "the model has no chat template, and no <|im_start|> and <|im_end|> to fall back on ChatML",
                remedy="ask it to complete a text instead, or use a model that was tuned for chats",
            )
        source = CHATML
    return ChatTemplate(source, special=tokenizer.special_tokens, tokens=tokenizer.template_tokens)


def encode_prompt(tokenizer: Tokenizer, segments: Sequence[Segment]) -> list[int]:
    """The ids of a rendered prompt, with the model's first token before it where the model wants one."""
    parts = [(segment.text, segment.parse_special) for segment in segments]
    return tokenizer.encode_parts(parts, add_bos=tokenizer.add_bos)


class ChatTemplate:
    """A compiled template. Raises `Invalid` if `source` is not one.

    `special` are the names of control tokens, `tokens` what the template finds as `bos_token`, `eos_token`,
    and so on. Safe to use from several threads, one after the other.
    """

    def __init__(self, source: str, *, special: Mapping[str, int], tokens: Mapping[str, str]) -> None:
        self._sandbox = TemplateSandbox()
        self._lock = threading.Lock()
        self._tokens = {"bos_token": "", "eos_token": "", **tokens}
        self._source = source
        self._names = _names_pattern(special)
        lowered = [name.lower() for name in special]
        self._beginnings = {name[:end] for name in lowered for end in range(1, len(name))}
        self._longest = max(map(len, self._beginnings), default=0)
        try:
            self._template = self._sandbox.build(source)
        except TemplateSyntaxError as error:
            raise Invalid(f"the model's chat template, line {error.lineno}: {error.message}") from error
        except (TemplateError, SyntaxError, RecursionError, MemoryError, ValueError, TypeError) as error:
            raise Invalid(f"the model's chat template does not compile: {_one_line(error)}") from error

    def render(self, messages: Sequence[Turn], *, add_generation_prompt: bool = True) -> list[Segment]:
        """The prompt for `messages`, which ends where the model's answer begins if `add_generation_prompt`.

        Raises `Invalid` for a conversation that the template refuses, with its own words, for a content part
        that is not text, and for a template that goes over the sandbox's limits.
        """
        if not messages:
            raise Invalid("there are no messages", field="messages")
        turns = [_as_turn(message, place) for place, message in enumerate(messages)]
        mark = _unused_mark(self._source, turns)
        values: dict[str, Any] = {
            **self._tokens,
            "messages": [self._guard(turn, mark) for turn in turns],
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            with self._lock:
                text = self._sandbox.run(self._template, values)
        except TemplateError as error:
            raise Invalid(f"the model's chat template refuses: {_one_line(error)}", field="messages") from error
        except Exception as error:  # a stranger's program: it can fail in every way that Python knows
            why = f"{type(error).__name__}: {_one_line(error)}"
            raise Invalid(f"the model's chat template failed with {why}", field="messages") from error
        return list(_segments(text, mark))

    def _guard(self, value: Any, mark: str) -> Any:
        """`value` with marks in names of control tokens, and in the beginning of one that it ends with."""
        if isinstance(value, dict):
            return {self._guard(key, mark): self._guard(item, mark) for key, item in value.items()}
        if isinstance(value, list):
            return [self._guard(item, mark) for item in value]
        if not isinstance(value, str):
            return value
        tail = self._open_end(value)
        body = value[: len(value) - tail]
        guarded = self._names.sub(lambda match: _marked(match[0], mark), body) if self._names else body
        return guarded + _marked(value[len(value) - tail :], mark)

    def _open_end(self, value: str) -> int:
        """Length of the longest beginning of a name that `value` ends with: what follows may complete it."""
        end = value[-self._longest :].lower() if self._longest else ""
        return next((len(end) - start for start in range(len(end)) if end[start:] in self._beginnings), 0)


def _names_pattern(names: Iterable[str]) -> re.Pattern[str] | None:
    """Any of `names`, in any case since templates may change it."""
    ordered = sorted(filter(None, names), key=len, reverse=True)
    if not ordered:
        return None
    # a set of first characters keeps the search quick: models have hundreds of names
    first = "".join(re.escape(name[0]) for name in ordered)
    return re.compile(f"(?=[{first}])(?:{'|'.join(map(re.escape, ordered))})", re.IGNORECASE)


def _marked(text: str, mark: str) -> str:
    return "".join(character + mark for character in text)


def _segments(text: str, mark: str) -> Iterator[Segment]:
    """`text` cut into what the parser may read, and the characters with marks, which it may not."""
    text = text.replace(_escape(mark), mark)  # a template may have asked for JSON in ASCII
    end = 0
    for match in re.finditer(f"(?:[^{mark}]{mark}+)+", text):
        if match.start() > end:
            yield Segment(text[end : match.start()], parse_special=True)
        yield Segment(match[0].replace(mark, ""), parse_special=False)
        end = match.end()
    if end < len(text):
        yield Segment(text[end:].replace(mark, ""), parse_special=True)


def _escape(mark: str) -> str:
    r"""How JSON in ASCII writes it: `\udbfc\udc00`."""
    return json.dumps(mark)[1:-1]


def _unused_mark(source: str, turns: list[dict[str, Any]]) -> str:
    try:
        encoded = msgspec.json.encode(turns).decode()
    except UnicodeEncodeError as error:
        raise Invalid("a message has a lone surrogate: it is not valid Unicode", field="messages") from error
    text = source + encoded.replace("\\\\", "\\")  # backslashes as the messages have them
    lowered = text.lower()
    # Nor may a text spell its JSON escape: `_segments` reads those as marks.
    mark = next((mark for mark in map(chr, MARKS) if mark not in text and _escape(mark) not in lowered), None)
    if mark is None:
        raise Invalid("the messages use up all of Unicode's private characters", field="messages")
    return mark


def _as_turn(message: Turn, place: int) -> dict[str, Any]:
    """A message as templates expect it: absent fields left out, content as text."""
    turn: dict[str, Any] = {"role": message.role, "content": _text_of(message.content, place)}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls is not None:
        turn["tool_calls"] = [_as_tool_call(call) for call in message.tool_calls]
    return turn


def _text_of(content: str | list[dict[str, Any]] | None, place: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for part_place, part in enumerate(content):
        field = f"messages[{place}].content[{part_place}]"
        if part.get("type") != "text":
            raise Invalid(f"{field} is of type {part.get('type')!r}; this model reads 'text' only", field=field)
        text = part.get("text")
        if not isinstance(text, str):
            raise Invalid(f"{field} has no text", field=field)
        texts.append(text)
    return "".join(texts)


def _as_tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's clients send the arguments as JSON in a string; templates expect the object."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = msgspec.json.decode(function["arguments"], type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return call  # what a model once wrote need not be JSON: the template gets it as text
    return {**call, "function": {**function, "arguments": arguments}}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
