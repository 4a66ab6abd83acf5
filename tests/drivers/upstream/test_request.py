"""What is asked of a server in its dialect, and what is refused because it could not be said."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.upstream.dialects import DIALECTS, dialect_of
from drivers.upstream.request import body_of, path_of
from microkernel.asking import ChatMessage, Grammar
from microkernel.errors import Invalid, Unimplemented
from microkernel.model_server import Generate

HELLO = [ChatMessage(role="user", content="Hello")]
EXTRAS = {
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "min_tokens": 2,
    "ignore_eos": True,
    "stop_token_ids": [7],
    "logit_bias": {"7": 1.0},
}
# By dialect, what each of these is called there; what is not named is refused.
KNOWN = {
    "openai": {"logit_bias": "logit_bias"},
    "vllm": {name: name for name in EXTRAS},
    "sglang": {name: name for name in EXTRAS},
    "llama.cpp": {
        "top_k": "top_k",
        "min_p": "min_p",
        "repetition_penalty": "repeat_penalty",
        "ignore_eos": "ignore_eos",
        "logit_bias": "logit_bias",
    },
    "llama-cpp-python": {
        "top_k": "top_k",
        "min_p": "min_p",
        "repetition_penalty": "repeat_penalty",
        "min_tokens": "min_tokens",
        "logit_bias": "logit_bias",
    },
    "ollama": {},
    "microkernel": {name: name for name in EXTRAS},
}


def said(dialect: str, **fields) -> dict:
    ask = Generate(**{"model": "m", "messages": HELLO, **fields})
    return json.loads(body_of(ask, DIALECTS[dialect]))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_openai_has_is_said_to_all(dialect):
    fields = {"temperature": 0.5, "top_p": 0.9, "presence_penalty": 1.0, "frequency_penalty": -1.0, "seed": 3}
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = said(dialect, **fields, max_tokens=9, stop=["x"], tools=tools, tool_choice="required", logprobs=2)
    assert {name: body[name] for name in fields} == fields
    assert (body["max_tokens"], body["stop"], body["tools"], body["tool_choice"]) == (9, ["x"], tools, "required")
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    assert body["stream_options"] == {"include_usage": True}
    assert body["messages"] == [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", EXTRAS)
def test_what_only_some_have_is_said_to_these_by_their_name_and_refused_by_the_others(dialect, name):
    theirs = KNOWN[dialect].get(name)
    if theirs is not None:
        assert said(dialect, **{name: EXTRAS[name]})[theirs] == EXTRAS[name]
        return
    with pytest.raises(Unimplemented) as caught:
        said(dialect, **{name: EXTRAS[name]})
    assert caught.value.field == name


def test_what_is_not_asked_for_is_not_said():
    for dialect in DIALECTS:
        assert set(said(dialect)) == {"model", "messages", "stream", "stream_options"}


def test_what_changes_nothing_is_no_demand_where_the_thing_does_not_exist():
    neutral = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert not neutral.keys() & said("openai", **neutral).keys()
    assert said("vllm", **neutral) == said("vllm") | neutral
    assert said("sglang", top_k=0)["top_k"] == -1
    with pytest.raises(Unimplemented):
        said("ollama", repetition_penalty=1.0)


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
STRICT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}


@pytest.mark.parametrize(
    ("dialect", "grammar", "expected"),
    [
        ("openai", {"json_schema": SCHEMA}, {"response_format": STRICT}),
        ("openai", {"json_schema": {"type": "object"}}, {"response_format": {"type": "json_object"}}),
        ("openai", {"regex": "a+"}, None),
        ("openai", {"choice": ["a"]}, None),
        ("openai", {"json_schema": False}, None),
        ("vllm", {"json_schema": SCHEMA}, {"structured_outputs": {"json": SCHEMA}}),
        ("vllm", {"regex": "a+"}, {"structured_outputs": {"regex": "a+"}}),
        ("vllm", {"choice": ["a", "b"]}, {"structured_outputs": {"choice": ["a", "b"]}}),
        ("microkernel", {"lark": "start: A"}, {"structured_outputs": {"grammar": "start: A"}}),
        ("sglang", {"regex": "a+"}, {"regex": "a+"}),
        ("sglang", {"choice": ["a.b", "c"]}, {"regex": r"(?:a\.b)|(?:c)"}),
        ("sglang", {"lark": 'root ::= "a"'}, {"ebnf": 'root ::= "a"'}),
        ("sglang", {"lark": 'start: "a"'}, None),
        ("llama.cpp", {"choice": ['say "hi"', "a\\b"]}, {"grammar": 'root ::= "say \\"hi\\"" | "a\\\\b"'}),
        ("llama.cpp", {"lark": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}),
        ("llama.cpp", {"lark": 'start: "a"'}, None),
        ("llama.cpp", {"json_schema": SCHEMA}, {"response_format": STRICT}),
        (
            "llama-cpp-python",
            {"json_schema": SCHEMA},
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
        ),
        ("llama-cpp-python", {"regex": "a+"}, None),
        ("ollama", {"json_schema": SCHEMA}, {"response_format": STRICT}),
        ("ollama", {"choice": ["a"]}, None),
    ],
)
def test_a_grammar_is_said_in_the_servers_words_or_refused(dialect, grammar, expected):
    if expected is None:
        with pytest.raises(Unimplemented) as caught:
            said(dialect, grammar=Grammar(**grammar))
        assert caught.value.field == "grammar"
        return
    assert said(dialect, grammar=Grammar(**grammar)) == said(dialect) | expected


def test_a_text_goes_on_to_the_end_of_the_context_or_says_that_it_would_not():
    text = {"messages": None, "prompt": "Once"}
    assert said("llama.cpp", **text)["prompt"] == "Once"
    assert said("vllm", **text)["max_tokens"] is None
    assert said("openai", **text, max_tokens=5)["max_tokens"] == 5
    for dialect in ("openai", "sglang"):
        with pytest.raises(Invalid) as caught:
            said(dialect, **text)
        assert caught.value.field == "max_tokens"


def test_a_seed_of_64_bits_is_cut_for_those_who_have_32():
    assert said("vllm", seed=2**62 + 5)["seed"] == 2**62 + 5
    assert [said(dialect, seed=2**62 + 5)["seed"] for dialect in ("llama.cpp", "llama-cpp-python", "ollama")] == [5] * 3


def test_prompts_of_tokens_go_to_those_who_read_them():
    text = {"messages": None, "prompt": [1, 2, 3], "max_tokens": 5}
    assert said("vllm", **text)["prompt"] == [1, 2, 3]
    for dialect in ("ollama", "llama-cpp-python", "microkernel"):
        with pytest.raises(Unimplemented) as caught:
            said(dialect, **text)
        assert caught.value.field == "prompt"


def test_tools_are_for_chats():
    with pytest.raises(Unimplemented) as caught:
        said("vllm", messages=None, prompt="x", max_tokens=1, tools=[{}])
    assert caught.value.field == "tools"


def test_chats_and_texts_have_paths_of_their_own():
    assert path_of(Generate(model="m", messages=HELLO)) == "/chat/completions"
    assert path_of(Generate(model="m", prompt="x")) == "/completions"


def test_turns_are_said_without_what_they_do_not_have_and_a_call_keeps_its_empty_content():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        ChatMessage(role="assistant", tool_calls=[call]),
        ChatMessage(role="tool", content="7", tool_call_id="c"),
    ]
    assert said("openai", messages=turns)["messages"] == [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "7", "tool_call_id": "c"},
    ]


@pytest.mark.parametrize(
    ("owners", "name"),
    [
        (["vllm", "vllm"], "vllm"),
        (["llamacpp"], "llama.cpp"),
        (["me"], "llama-cpp-python"),
        (["library", "library"], "ollama"),
        (["microkernel"], "microkernel"),
        (["library", "somebody"], "openai"),
        (["openai", "system"], "openai"),
        ([""], "openai"),
        ([], "openai"),
    ],
)
def test_a_kind_of_server_is_known_by_who_owns_all_its_models(owners, name):
    assert dialect_of(owners).name == name


@given(st.text(), st.sampled_from(sorted(DIALECTS)))
def test_whatever_is_in_a_text_is_json_on_the_way(content, dialect):
    try:
        content.encode()
    except UnicodeEncodeError:
        return
    body = said(dialect, messages=[ChatMessage(role="user", content=content)])
    assert body["messages"][0]["content"] == content
