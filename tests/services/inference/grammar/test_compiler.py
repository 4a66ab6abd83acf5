"""What a stranger's grammar may do: be compiled once, be refused in words, and never take the node with it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.errors import Invalid, Unavailable
from services.inference.grammar import trial
from services.inference.grammar.compiler import KEPT, GrammarCompiler
from services.inference.messages import Grammar

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def chain(length: int) -> dict:
    """A schema whose objects contain each other so deep that the library overflows its stack."""
    links = {
        f"d{number}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{number + 1}"}}, "required": ["a"]}
        for number in range(length)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {"type": "string"}}}


ENDLESS = Grammar(lark="start: T\nT: " + " & ".join(f"/.*x{number}.*/" for number in range(200)))


@pytest.fixture
def compiler(byte_level):
    made = GrammarCompiler(byte_level, byte_level.vocab_size)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        (Grammar(), "exactly one of"),
        (Grammar(regex="a", lark="start: x"), "regex and lark is given"),
        (Grammar(regex="(("), "unclosed group"),
        (Grammar(regex="(?=a)b"), "look-around"),
        (Grammar(regex="a" * 70_000), "at most 65536"),
        (Grammar(regex="\ud800"), "surrogate"),
        (Grammar(regex=r"[^\x00-\x{10FFFF}]"), "nothing fits it"),
        (Grammar(choice=[]), "1 to 1024"),
        (Grammar(choice=["a"] * 1025), "1 to 1024"),
        (Grammar(choice=["a" * 70_000]), "at most 65536"),
        (Grammar(lark="start: ("), "cannot be used"),
        (Grammar(lark="root ::= ("), "GBNF"),
        (Grammar(lark="root ::= nothing"), "GBNF"),
        (Grammar(lark="root ::= " + "(" * 5000), "GBNF"),
        (Grammar(lark="start: start"), "nothing fits it"),
        (Grammar(lark="begin: /a/"), "start"),
        (Grammar(json_schema={"type": "wizard"}), "wizard"),
        (Grammar(json_schema={"type": "string", "format": "no-such"}), "Unknown format: no-such"),
        (Grammar(json_schema={"not": {"type": "string"}}), "not"),
        (Grammar(json_schema={"$ref": "https://example.com/schema"}), "example.com"),
        (Grammar(json_schema={"$ref": "#/$defs/none"}), "none"),
        (Grammar(json_schema={"$ref": "#"}), "nothing fits it"),
        (Grammar(json_schema={"type": "integer", "minimum": 5, "maximum": 3}), "minimum"),
        (Grammar(json_schema=False), "false"),
        (Grammar(json_schema={"enum": ["a" * 70_000]}), "at most 65536"),
        (Grammar(json_schema={"type": "object", "properties": {f"p{n}": {} for n in range(2000)}}), "max is"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_grammar_is_refused_with_the_reason(one_compiler, grammar, why):
    with pytest.raises(Invalid) as refused:
        one_compiler.compile_now(grammar)
    assert refused.value.field == "grammar"
    assert why in refused.value.message
    assert len(refused.value.message) < 500
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("depth", [50, 200, 5000])
def test_a_schema_nested_too_deep_is_refused(one_compiler, depth):
    schema: dict = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema, "maxItems": 1}
    if depth == 50:
        one_compiler.compile_now(Grammar(json_schema=schema))
        return
    with pytest.raises(Invalid, match="recursion|too deep"):
        one_compiler.compile_now(Grammar(json_schema=schema))


@pytest.mark.parametrize("grammar", [Grammar(json_schema=chain(600)), ENDLESS], ids=["crash", "endless"])
def test_a_grammar_that_kills_the_library_kills_a_child_and_the_next_one_is_compiled(compiler, grammar, monkeypatch):
    monkeypatch.setattr(trial, "CPU_SECONDS", 0.3)
    compiler.compile_now(Grammar(regex="a"))
    with pytest.raises(Invalid, match="too much time or memory"):
        compiler.compile_now(grammar)
    compiler.compile_now(Grammar(regex="b"))


def test_a_grammar_whose_steps_are_slow_is_refused(compiler, monkeypatch):
    monkeypatch.setattr(trial, "SLOWEST", 0.0)
    with pytest.raises(Invalid, match="a step takes too long"):
        compiler.compile_now(Grammar(regex="[a-z]{1,500}"))


def test_a_grammar_is_compiled_and_a_bad_one_tried_only_once(compiler, monkeypatch):
    tried = []
    run = trial.Trial.run
    monkeypatch.setattr(trial.Trial, "run", lambda self, text: tried.append(text) or run(self, text))
    assert compiler.compile_now(Grammar(json_schema=OBJECT)) is compiler.compile_now(Grammar(json_schema=dict(OBJECT)))
    for _ in range(2):
        with pytest.raises(Invalid):
            compiler.compile_now(Grammar(regex="(("))
    assert len(tried) == 2


def test_no_more_than_the_last_grammars_are_kept(compiler):
    first = compiler.compile_now(Grammar(choice=["first"]))
    for number in range(KEPT - 1):
        compiler.compile_now(Grammar(choice=[f"c{number}"]))
    assert compiler.compile_now(Grammar(choice=["first"])) is first
    compiler.compile_now(Grammar(choice=["one too many"]))
    assert compiler.compile_now(Grammar(choice=["first"])) is first  # used lately
    assert len(compiler._kept) == KEPT


def test_what_one_owner_compiled_makes_nothing_faster_for_another(compiler):
    mine = compiler.compile_now(Grammar(regex="a"), "ann")
    assert compiler.compile_now(Grammar(regex="a"), "bob") is not mine
    assert compiler.compile_now(Grammar(regex="a"), "ann") is mine


async def test_the_loop_goes_on_while_a_grammar_is_compiled(compiler):
    task = asyncio.create_task(compiler.compile(Grammar(json_schema=OBJECT), "ann"))
    turns = 0
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    await task
    assert turns > 2


def test_a_closed_compiler_starts_no_child_any_more(byte_level):
    compiler = GrammarCompiler(byte_level, byte_level.vocab_size)
    compiler.close()
    with pytest.raises(Unavailable):
        compiler.compile_now(Grammar(regex="a"))
    with pytest.raises(Unavailable):
        asyncio.run(compiler.compile(Grammar(regex="a"), "ann"))


async def test_closing_ends_what_is_being_compiled(byte_level):
    compiler = GrammarCompiler(byte_level, byte_level.vocab_size)
    await compiler.compile(Grammar(regex="a"), "ann")
    tasks = [asyncio.create_task(compiler.compile(grammar, "ann")) for grammar in (ENDLESS, Grammar(regex="b"))]
    await asyncio.sleep(0.05)
    compiler.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)


def test_the_child_is_gone_with_its_compiler(byte_level):
    compiler = GrammarCompiler(byte_level, byte_level.vocab_size)
    compiler.compile_now(Grammar(regex="a"))
    child = compiler._trial._child
    compiler.close()
    compiler._thread.shutdown(wait=True)
    assert child.poll() is not None


def test_a_schema_cannot_change_how_it_is_compiled(one_compiler, byte_level):
    schema = {"type": "array", "maxItems": 1, "items": {"type": "null"}, "x-guidance": {"whitespace_pattern": "x*"}}
    matcher = one_compiler.compile_now(Grammar(json_schema=schema)).start()
    for token in byte_level.encode("[", add_bos=False, parse_special=False):
        matcher.advance(token)
    import numpy as np

    bits = np.zeros(-(-one_compiler._vocab_size // 8), dtype=np.uint8)
    matcher.fill(bits)
    [x] = byte_level.encode("x", add_bos=False, parse_special=False)
    assert not bits[x >> 3] >> (x & 7) & 1


KEYWORDS = st.sampled_from(
    ["type", "properties", "required", "items", "enum", "const", "anyOf", "allOf", "oneOf", "$ref", "$defs", "pattern",
     "format", "minimum", "maximum", "multipleOf", "minLength", "maxLength", "minItems", "maxItems", "prefixItems",
     "additionalProperties", "patternProperties", "x-guidance", "$schema", "$id"]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
PIECES = st.sampled_from(
    ["start", ":", "::=", "root", "(", ")", "[", "]", "{", "}", "/", '"', "|", "\\", "*", "+", "?", "\n", "a", "1",
     "%json", "%import", "common.INT", "~", "&", "@", "<|im_end|>", "^", "$", "{2}", "{9999999}", "(?i)", r"\p{L}",
     r"\d", "\ud800"]
)  # fmt: skip


@given(
    grammar=st.one_of(
        st.dictionaries(KEYWORDS, JSON, max_size=5).map(lambda schema: Grammar(json_schema=schema)),
        st.lists(PIECES | st.text(max_size=4), max_size=12).map(lambda parts: Grammar(regex="".join(parts))),
        st.lists(PIECES | st.text(max_size=4), max_size=16).map(lambda parts: Grammar(lark="".join(parts))),
        st.lists(st.text(), max_size=4).map(lambda choices: Grammar(choice=choices)),
    )
)
@settings(max_examples=150, deadline=None)
def test_any_grammar_is_compiled_or_refused_in_our_words(one_compiler, grammar):
    try:
        one_compiler.compile_now(grammar)
    except Invalid as refused:
        assert refused.field == "grammar"
        assert 0 < len(refused.message) < 500
