"""Records: what one line or row of a file says, as a text, a chat, or a prompt with its completion.

The forms are those that data sets are published in: `text`; `messages` as in OpenAI's fine-tuning
(https://platform.openai.com/docs/guides/supervised-fine-tuning) or ShareGPT's `conversations`; `prompt` with
`completion`, or Alpaca's `instruction`, `input` and `output`. Fields beside those of the form are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import blake3
import msgspec

from microkernel.errors import Invalid

__all__ = [
    "ROLES",
    "Chat",
    "ChatTurn",
    "Completion",
    "Kind",
    "Record",
    "Text",
    "content_digest",
    "kind_of",
    "read_record",
]

Kind = Literal["text", "chat", "completion"]

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
SHAREGPT = {"human": "user", "gpt": "assistant"}  # what ShareGPT calls roles; the others are called as here
MOST_MESSAGES = 1000  # of a chat: each answer is rendered with all before it, which takes the square of their number
SHOWN = 40  # characters of a value in an error


class Text(msgspec.Struct, frozen=True, tag="text"):
    """A document, all of which is learned."""

    text: str


class ChatTurn(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message of a chat, a `Turn` for chat templates; with `learned` False an answer is context only."""

    role: str
    content: str | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    learned: bool = True


class Chat(msgspec.Struct, frozen=True, tag="chat"):
    """A conversation, of which the answers are learned."""

    messages: tuple[ChatTurn, ...]


class Completion(msgspec.Struct, frozen=True, tag="completion"):
    """A prompt and what is to be said behind it, which is learned."""

    prompt: str
    completion: str


Record = Text | Chat | Completion


def kind_of(value: object) -> Kind:
    """What `value`, the object of a line or row, has the fields of: a chat before a completion before a text.

    Raises `Invalid` that says which fields would have been known.
    """
    fields = _fields(value)
    if isinstance(fields.get("messages"), list) or isinstance(fields.get("conversations"), list):
        return "chat"
    if _has(fields, "prompt", "completion") or _has(fields, "instruction", "output"):
        return "completion"
    if _text_field(fields) is not None:
        return "text"
    shown = ", ".join(sorted(str(name)[:SHOWN] for name in fields)[:8]) or "nothing"
    raise Invalid(
        f"has {shown}; known are text, messages, conversations, prompt and completion, instruction and output",
    )


def read_record(value: object, kind: Kind) -> Record:
    """The record of `kind` in `value`, the object of a line or row.

    Raises `Invalid` in words that follow the record's place: for fields that are missing or of a wrong type, for text
    that is no Unicode, for roles that are not known, and for what has nothing to learn.
    """
    fields = _fields(value)
    record: Record
    match kind:
        case "text":
            record = Text(_learned(fields, _text_field(fields) or "text"))
        case "completion":
            record = _completion(fields)
        case "chat":
            record = _chat(fields)
    try:
        msgspec.json.encode(record)
    except (UnicodeEncodeError, RecursionError) as error:
        why = "nests too deeply" if isinstance(error, RecursionError) else "has a lone surrogate: it is not Unicode"
        raise Invalid(why) from error
    except (TypeError, OverflowError, ValueError) as error:
        raise Invalid(f"has a value that JSON has no word for: {str(error)[:SHOWN]}") from error
    return record


def content_digest(record: Record) -> bytes:
    """BLAKE3 of what the record says: equal for equal records, whatever file and form they came in."""
    return blake3.blake3(msgspec.json.encode(record, order="sorted")).digest()


def size_of(record: Record) -> int:
    """About how many characters it has."""
    match record:
        case Text(text):
            return len(text)
        case Completion(prompt, completion):
            return len(prompt) + len(completion)
        case Chat(messages):
            return sum(len(message.content or "") for message in messages)


def _fields(value: object) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise Invalid(f"is {_named(value)}, not an object with fields")
    return value


def _has(fields: Mapping[Any, Any], *names: str) -> bool:
    return all(fields.get(name) is not None for name in names)


def _text_field(fields: Mapping[Any, Any]) -> str | None:
    """`text`, or `content` where it is the only field with a string, so that no other could be the text."""
    if fields.get("text") is not None:
        return "text"
    strings = [name for name, value in fields.items() if isinstance(value, str)]
    return "content" if strings == ["content"] else None


def _string(fields: Mapping[Any, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        raise Invalid(f"has no {name}")
    if not isinstance(value, str):
        raise Invalid(f"has {_named(value)} as {name}, not a string")
    return value


def _learned(fields: Mapping[Any, Any], name: str) -> str:
    text = _string(fields, name)
    if not text.strip():
        raise Invalid(f"has an empty {name}")
    return text


def _completion(fields: Mapping[Any, Any]) -> Completion:
    if not _has(fields, "prompt", "completion") and _has(fields, "instruction"):
        given = fields.get("input")
        parts = [_string(fields, "instruction"), _string(fields, "input") if given is not None else ""]
        return Completion("".join(f"{part}\n\n" for part in parts if part), _learned(fields, "output"))
    return Completion(_string(fields, "prompt"), _learned(fields, "completion"))


def _chat(fields: Mapping[Any, Any]) -> Chat:
    if fields.get("tools"):
        raise Invalid("has tools: what a template makes of their definitions is not learned here")
    foreign = fields.get("messages") is None and fields.get("conversations") is not None
    name = "conversations" if foreign else "messages"
    turns = fields.get(name)
    if not isinstance(turns, list):
        raise Invalid(f"has no {name}" if turns is None else f"has {_named(turns)} as {name}, not a list")
    if not turns:
        raise Invalid(f"has no {name} in its list")
    if len(turns) > MOST_MESSAGES:
        raise Invalid(f"has {len(turns)} {name}; {MOST_MESSAGES} are taken")
    messages = tuple(_message(turn, f"{name}[{place}]") for place, turn in enumerate(turns))
    if not any(message.role == "assistant" and message.learned for message in messages[1:]):
        raise Invalid("has nothing that the assistant answers")
    return Chat(messages)


def _message(turn: object, where: str) -> ChatTurn:
    if not isinstance(turn, dict):
        raise Invalid(f"has {_named(turn)} as {where}, not an object")
    role = turn.get("role")
    if role is None and isinstance(turn.get("from"), str):
        role = SHAREGPT.get(turn["from"], turn["from"])
    if not isinstance(role, str) or role not in ROLES:
        raise Invalid(f"has the role {str(role)[:SHOWN]!r} in {where}; known are {', '.join(sorted(ROLES))}")
    content = turn.get("content")
    content = _content(turn.get("value") if content is None else content, where)
    calls = turn.get("tool_calls") or None
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise Invalid(f"has tool_calls in {where} that are no list of objects")
    if calls is None and (content is None or (role == "assistant" and not content.strip())):
        raise Invalid(f"has an empty {where}")
    weight = turn.get("weight")
    if weight is not None and not (isinstance(weight, (int, float)) and weight in {0, 1}):
        raise Invalid(f"has the weight {str(weight)[:SHOWN]} in {where}; 0 and 1 are known")
    return ChatTurn(
        role,
        content,
        name=_optional(turn, "name", where),
        tool_call_id=_optional(turn, "tool_call_id", where),
        tool_calls=calls,
        learned=weight != 0,
    )


def _content(content: object, where: str) -> str | None:
    """A message's text: a string, or OpenAI's list of parts, which are texts."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Invalid(f"has {_named(content)} as content of {where}, not a string")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise Invalid(f"has a part in {where} that is no text")
        texts.append(text)
    return "".join(texts)


def _optional(turn: Mapping[Any, Any], name: str, where: str) -> str | None:
    value = turn.get(name)
    if value is not None and not isinstance(value, str):
        raise Invalid(f"has {_named(value)} as {name} of {where}, not a string")
    return value


def _named(value: object) -> str:
    """A value's type, in JSON's words."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case dict():
            return "an object"
    return f"a {type(value).__name__}"
