"""Whatever the logits are, the text fits its grammar: regular expressions, schemas, choices and context-free ones."""

from __future__ import annotations

import json
import re

import pytest
from constrained_writing import write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.inference.messages import Grammar

properties = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

ATOMS = st.sampled_from(["a", "b", "é", "[a-c]", "[^a]", "[0-9]", r"\.", " ", "hello", "日本"])
REGEXES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: "(" + "|".join(parts) + ")"),
        st.tuples(inner, st.sampled_from(["?", "{1,3}", "{2}", "{0,2}"])).map(lambda pair: f"({pair[0]}){pair[1]}"),
    ),
    max_leaves=6,
)


@properties
@given(regex=REGEXES, seed=st.integers(0, 1000))
def test_every_text_matches_its_regular_expression(compiler, tokenizer, regex, seed):
    text = write(compiler.compile_now(Grammar(regex=regex)), tokenizer, seed)
    assert text is not None
    assert re.fullmatch(regex, text, re.DOTALL), (regex, text)


STRINGS = st.fixed_dictionaries({"type": st.just("string"), "maxLength": st.integers(0, 5)})
NUMBERS = st.builds(
    lambda low, width: {"type": "integer", "minimum": low, "maximum": low + width},
    st.integers(-50, 50),
    st.integers(0, 50),
)
SCHEMAS = st.recursive(
    st.one_of(
        STRINGS, NUMBERS, st.just({"type": "boolean"}), st.just({"type": "null"}), st.just({"$ref": "#/$defs/word"})
    )
    | st.lists(st.sampled_from(["x", "y", 1, None, True]), min_size=1, max_size=3).map(lambda some: {"enum": some}),
    lambda inner: st.one_of(
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 3)),
        st.builds(
            lambda properties, asked: {
                "type": "object",
                "properties": properties,
                "required": [name for name in properties if name in asked],
                "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from(["a", "b", "name"]), inner, max_size=3),
            st.sets(st.sampled_from(["a", "b", "name"])),
        ),
        st.lists(inner, min_size=1, max_size=2).map(lambda some: {"anyOf": some}),
    ),
    max_leaves=5,
)
WORD = {"type": "string", "pattern": "^[a-z]{1,4}$"}
KINDS = {"string": str, "integer": int, "boolean": bool, "null": type(None), "array": list, "object": dict}


def fits(value, schema) -> bool:
    """JSON Schema, as much of it as the tests make."""
    if "$ref" in schema:
        schema = WORD
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    if "enum" in schema:
        return any(value == one and type(value) is type(one) for one in schema["enum"])
    if type(value) is not KINDS[schema["type"]]:
        return False
    if isinstance(value, str):
        return len(value) <= schema.get("maxLength", 5) and bool(re.search(schema.get("pattern", ""), value))
    if isinstance(value, list):
        return len(value) <= schema["maxItems"] and all(fits(item, schema["items"]) for item in value)
    if isinstance(value, dict):
        known = schema["properties"]
        return set(schema["required"]) <= set(value) <= set(known) and all(
            fits(value[name], known[name]) for name in value
        )
    return not isinstance(value, int) or isinstance(value, bool) or schema["minimum"] <= value <= schema["maximum"]


@properties
@given(schema=SCHEMAS, seed=st.integers(0, 1000))
def test_every_text_is_json_that_validates_against_its_schema(compiler, tokenizer, schema, seed):
    grammar = compiler.compile_now(Grammar(json_schema={**schema, "$defs": {"word": WORD}}))
    text = write(grammar, tokenizer, seed, most=3000)
    assert text is not None
    assert fits(json.loads(text), schema), (schema, text)


@properties
@given(choices=st.lists(st.text(max_size=8), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_every_text_is_one_of_the_choices_whatever_is_in_them(compiler, tokenizer, choices, seed):
    assert write(compiler.compile_now(Grammar(choice=choices)), tokenizer, seed) in choices


@pytest.mark.parametrize("lark", ['start: "(" start ")" | "x"', 'root ::= "(" root ")" | "x"'], ids=["lark", "gbnf"])
def test_a_context_free_grammar_balances_what_no_expression_can(compiler, tokenizer, lark):
    grammar = compiler.compile_now(Grammar(lark=lark))
    found = {write(grammar, tokenizer, seed) for seed in range(12)}
    for text in found:
        depth = (len(text) - 1) // 2
        assert text == "(" * depth + "x" + ")" * depth
    assert len(found) > 2


def test_any_object_is_an_object(compiler, tokenizer):
    grammar = compiler.compile_now(
        Grammar(json_schema={"type": "object", "maxProperties": 1, "additionalProperties": {"type": "null"}})
    )
    texts = [write(grammar, tokenizer, seed, most=3000) for seed in range(5)]
    assert all(isinstance(json.loads(text), dict) for text in texts if text is not None)
    assert any(text is not None for text in texts)
