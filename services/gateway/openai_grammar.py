"""What a chat request demands the answer to fit, in any of the words that clients have for it.

OpenAI's `response_format` (https://platform.openai.com/docs/guides/structured-outputs), vLLM's `structured_outputs`,
and its older `guided_*` fields (https://docs.vllm.ai/en/latest/features/structured_outputs.html). One request has one.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from microkernel.errors import Invalid, Unimplemented
from services.inference.messages import Grammar

__all__ = ["GRAMMAR_FIELDS", "Demand", "ResponseFormat", "Schema", "StructuredOutputs", "demand_of"]

GRAMMAR_FIELDS = (
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
)
Schema = dict[str, Any] | bool | str  # vLLM takes one as text, too
_ANY_OBJECT: dict[str, Any] = {"type": "object"}


class NamedSchema(msgspec.Struct, frozen=True):
    """A schema with the name that OpenAI wants for it."""

    schema: dict[str, Any] | bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """OpenAI's word for what an answer must fit."""

    type: str
    json_schema: NamedSchema | None = None


class StructuredOutputs(msgspec.Struct, frozen=True):
    """vLLM's word for it."""

    json: Schema | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Any = None


class Demand(msgspec.Struct, frozen=True):
    """A grammar, and the field it came in."""

    grammar: Grammar
    field: str


class _Asked(Protocol):
    @property
    def response_format(self) -> ResponseFormat | None: ...
    @property
    def structured_outputs(self) -> StructuredOutputs | None: ...
    @property
    def guided_json(self) -> Schema | None: ...
    @property
    def guided_regex(self) -> str | None: ...
    @property
    def guided_choice(self) -> list[str] | None: ...
    @property
    def guided_grammar(self) -> str | None: ...


def demand_of(asked: _Asked) -> Demand | None:
    """The one grammar that is asked for; None if there is none. Raises `Invalid` that names the field."""
    found = []
    if asked.response_format is not None:
        found += _of_response_format(asked.response_format)
    if asked.structured_outputs is not None:
        found += _of_structured_outputs(asked.structured_outputs)
    if asked.guided_json is not None:
        found.append(Demand(Grammar(json_schema=_schema(asked.guided_json, "guided_json")), "guided_json"))
    if asked.guided_regex is not None:
        found.append(Demand(Grammar(regex=asked.guided_regex), "guided_regex"))
    if asked.guided_choice is not None:
        found.append(Demand(Grammar(choice=asked.guided_choice), "guided_choice"))
    if asked.guided_grammar is not None:
        found.append(Demand(Grammar(lark=asked.guided_grammar), "guided_grammar"))
    if len(found) > 1:
        first, second = found[0].field, found[1].field
        raise Invalid(f"'{first}' and '{second}' both say what the answer must fit: give one", field=second)
    return found[0] if found else None


def _of_response_format(given: ResponseFormat) -> list[Demand]:
    field = "response_format"
    if given.type == "text":
        return []
    if given.type == "json_object":
        return [Demand(Grammar(json_schema=_ANY_OBJECT), field)]
    if given.type != "json_schema":
        raise Invalid(
            f"'{field}.type' is {given.type[:40]!r}, allowed are text, json_object and json_schema",
            field=f"{field}.type",
        )
    if given.json_schema is None or given.json_schema.schema is None:
        raise Invalid(f"'{field}.json_schema.schema' is missing", field=f"{field}.json_schema.schema")
    return [Demand(Grammar(json_schema=given.json_schema.schema), field)]


def _of_structured_outputs(given: StructuredOutputs) -> list[Demand]:
    field = "structured_outputs"
    if given.structural_tag is not None:
        raise Unimplemented(f"'{field}.structural_tag' is not supported yet", field=f"{field}.structural_tag")
    found = []
    if given.json is not None:
        found.append(Demand(Grammar(json_schema=_schema(given.json, f"{field}.json")), f"{field}.json"))
    if given.json_object:
        found.append(Demand(Grammar(json_schema=_ANY_OBJECT), f"{field}.json_object"))
    if given.regex is not None:
        found.append(Demand(Grammar(regex=given.regex), f"{field}.regex"))
    if given.choice is not None:
        found.append(Demand(Grammar(choice=given.choice), f"{field}.choice"))
    if given.grammar is not None:
        found.append(Demand(Grammar(lark=given.grammar), f"{field}.grammar"))
    return found


def _schema(given: Schema, field: str) -> dict[str, Any] | bool:
    if not isinstance(given, str):
        return given
    try:
        return msgspec.json.decode(given, type=dict[str, Any] | bool)
    except msgspec.DecodeError as error:
        raise Invalid(f"'{field}' is not a JSON schema: {error}", field=field) from error
    except (UnicodeEncodeError, RecursionError) as error:
        raise Invalid(f"'{field}' is not a JSON schema", field=field) from error
