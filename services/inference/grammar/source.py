"""A grammar as a request has it, checked and written as the library takes it.

JSON Schema, regular expressions (the syntax of Rust's, https://docs.rs/regex, which match the whole text), choices, and
context-free grammars: Lark's (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md) or GBNF, known by its
`::=`. Within JSON, white space comes in runs of at most `MAX_SPACE`: small models write it without end.
"""

from __future__ import annotations

from typing import Any

import msgspec
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark

from microkernel.errors import Invalid
from services.inference.messages import Grammar

__all__ = ["FIELD", "write_grammar"]

FIELD = "grammar"
MAX_SOURCE = 64 << 10  # characters of a schema, an expression, a grammar, or all choices together
MAX_CHOICES = 1024
MAX_SPACE = 20


def write_grammar(grammar: Grammar) -> str:
    """The library's text of `grammar`. Raises `Invalid` for none, several, or too long a one."""
    given = [name for name in Grammar.__struct_fields__ if getattr(grammar, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        kinds = ", ".join(Grammar.__struct_fields__)
        raise Invalid(f"a grammar is exactly one of {kinds}, and {found} is given", field=FIELD)
    if grammar.json_schema is not None:
        return _of_schema(grammar.json_schema)
    if grammar.regex is not None:
        return LLMatcher.grammar_from_regex(_checked(grammar.regex, "the regular expression"))
    if grammar.choice is not None:
        return _of_choice(grammar.choice)
    assert grammar.lark is not None
    return _of_lark(_checked(grammar.lark, "the grammar"))


def _of_schema(schema: dict[str, Any] | bool) -> str:
    if schema is False:
        raise Invalid("no JSON fits the schema 'false'", field=FIELD)
    try:
        text = _checked(msgspec.json.encode({} if schema is True else schema).decode(), "the JSON schema")
        return LLMatcher.grammar_from_json_schema(
            text, overrides={"whitespace_pattern": rf"[\x20\x0A\x0D\x09]{{1,{MAX_SPACE}}}", "lenient": False}
        )
    except (ValueError, RecursionError) as error:
        raise Invalid(f"the JSON schema cannot be used: {' '.join(str(error).split())[:200]}", field=FIELD) from error


def _of_choice(choices: list[str]) -> str:
    if not 0 < len(choices) <= MAX_CHOICES:
        raise Invalid(f"there are {len(choices)} choices, allowed are 1 to {MAX_CHOICES}", field=FIELD)
    _checked("".join(choices), "the choice of texts")
    return LLMatcher.grammar_from_regex("|".join(map(_literal, choices)))


def _literal(text: str) -> str:
    return "".join(one if one.isascii() and one.isalnum() else f"\\x{{{ord(one):x}}}" for one in text)


def _of_lark(text: str) -> str:
    if "::=" in text:
        try:
            text = gbnf_to_lark(text)
        except Exception as error:
            raise Invalid(f"the grammar is no GBNF: {' '.join(str(error).split())[:200]}", field=FIELD) from error
    return LLMatcher.grammar_from_lark(text)


def _checked(text: str, what: str) -> str:
    if len(text) > MAX_SOURCE:
        raise Invalid(f"{what} has {len(text)} characters, at most {MAX_SOURCE}", field=FIELD)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Invalid(f"{what} has a lone surrogate at character {error.start}", field=FIELD) from error
    return text
