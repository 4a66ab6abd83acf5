"""The chat request: what is taken, what is refused, and that the culprit is always named."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.errors import Invalid, MicrokernelError, Unimplemented
from services.gateway.openai_request import _REFUSED, ChatRequest, parse_chat
from services.inference.messages import Grammar

HELLO = [{"role": "user", "content": "Hello"}]


def parse(**fields) -> ChatRequest:
    return parse_chat(json.dumps({"messages": HELLO, **fields}).encode())


def test_a_request_needs_nothing_but_messages():
    chat = parse().to_chat("ana")
    assert [(message.role, message.content) for message in chat.messages] == [("user", "Hello")]
    assert chat.owner == "ana"
    assert chat.model is None
    assert chat.max_tokens is None
    assert chat.stop == []
    assert chat.temperature is None


def test_null_is_the_same_as_nothing():
    fields = {name: None for name in (*ChatRequest.__struct_fields__, *_REFUSED) if name != "messages"}
    assert parse(**fields) == parse()


@pytest.mark.parametrize(
    ("tier", "process_class"),
    [
        (None, "interactive"),
        ("auto", "interactive"),
        ("default", "interactive"),
        ("priority", "interactive"),
        ("flex", "batch"),
    ],
)
def test_a_tier_is_a_class_of_processes_and_a_priority_a_nice_value(tier, process_class):
    chat = parse(service_tier=tier, priority=7).to_chat("ana")
    assert (chat.process_class, chat.nice) == (process_class, 7)


def test_unknown_fields_are_ignored():
    assert parse(store=True, metadata={"a": [1, {"b": None}]}, prediction={"a": 1}) == parse()


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [0, 2, 0.5]),
        ("top_p", [0, 1, 0.5]),
        ("min_p", [0, 1]),
        ("top_k", [-1, 0, 40, 2**31 - 1]),
        ("repetition_penalty", [0.1, 10]),
        ("presence_penalty", [-2, 2]),
        ("frequency_penalty", [-2, 2]),
        ("seed", [-(2**63), 0, 2**63 - 1]),
        ("max_tokens", [1, 2**31 - 1]),
        ("max_completion_tokens", [1]),
        ("n", [1, 2, 128]),
        ("stop", ["a", ["a"], ["a"] * 16, []]),
        ("stream", [True, False]),
        ("model", ["x", "x" * 512]),
        ("user", ["somebody"]),
        ("service_tier", ["auto", "default", "priority", "scale", "flex"]),
        ("priority", [0, 19]),
        ("logprobs", [True, False]),
        ("logit_bias", [{}, {"50256": -100}]),
        ("min_tokens", [0, 5]),
        ("ignore_eos", [True, False]),
        ("stop_token_ids", [[], [2, 3]]),
        ("guided_regex", ["[a-z]+"]),
        ("guided_choice", [["yes", "no"]]),
        ("guided_grammar", ['start: "a"']),
        ("guided_json", [{"type": "object"}, True]),
    ],
)
def test_values_within_their_limits_are_taken(field, values):
    for value in values:
        assert getattr(parse(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [-0.01, 2.01, "1", True, [], 10**400]),
        ("top_p", [-0.1, 1.1, {}]),
        ("min_p", [-1, 2]),
        ("top_k", [-2, 2**31, 1.5]),
        ("repetition_penalty", [0, -1, 10.5]),
        ("presence_penalty", [-2.1, 2.1]),
        ("frequency_penalty", [-3, 3]),
        ("seed", [2**63, -(2**63) - 1, "7", 0.5]),
        ("max_tokens", [0, -1, 2**31, 10**30, "9", True]),
        ("max_completion_tokens", [0, 1.5]),
        ("n", [0, -1, "1", 129, 10**12]),
        ("stop", ["", ["a", ""], ["a"] * 17, "a" * 1025, 5, [5], [None]]),
        ("stream", ["yes", 1]),
        ("model", [5, "x" * 513, []]),
        ("messages", [[], "Hello", {}, None]),
        ("user", [5]),
        ("service_tier", ["express", "", 5]),
        ("priority", [-1, 20, 1.5, "0"]),
        ("logprobs", [2, "yes"]),
        ("top_logprobs", [-1, 21, True, 3]),  # 3 without `logprobs`
        ("logit_bias", [[], {"5": "much"}, 7]),
        ("min_tokens", [-1, 1.5]),
        ("ignore_eos", ["yes"]),
        ("stop_token_ids", [5, ["a"]]),
        ("guided_regex", [5, ["a"]]),
        ("guided_choice", ["yes", [1]]),
        ("guided_json", [5, "{", "[]"]),
        ("guided_grammar", [{}]),
    ],
)
def test_values_beyond_their_limits_are_refused_by_name(field, values):
    for value in values:
        with pytest.raises(Invalid) as failure:
            parse(**{field: value})
        assert (failure.value.field or "").partition("[")[0] == field
        assert len(failure.value.message) < 300


@pytest.mark.parametrize(
    ("field", "harmless", "refused"),
    [
        ("functions", [], [{"name": "f"}]),
        ("function_call", "none", {"name": "f"}),
        ("audio", None, {"voice": "alloy"}),
        ("modalities", ["text"], ["text", "audio"]),
        ("web_search_options", None, {}),
        ("chat_template", None, "{{ messages }}"),
        ("continue_final_message", False, True),
    ],
)
def test_what_would_change_the_meaning_is_refused_and_what_asks_for_nothing_is_taken(field, harmless, refused):
    parse(**{field: harmless})
    with pytest.raises(Unimplemented, match="not supported yet") as failure:
        parse(**{field: refused})
    assert failure.value.field == field


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "wizard", "content": "a"}, "messages[1].role"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "assistant", "content": None}, "messages[1].content"),
        ({"role": "user", "content": []}, "messages[1].content"),
        ({"role": "user", "content": [{"text": "a"}]}, "messages[1].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "messages[1].content[0].text"),
    ],
)
def test_a_bad_message_is_named_with_its_number(message, field):
    with pytest.raises(Invalid) as failure:
        parse(messages=[*HELLO, message])
    assert failure.value.field == field


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "function", "content": "42", "name": "f"}, "messages[0].role"),
        ({"role": "assistant", "content": "", "function_call": {"name": "f"}}, "messages[0].function_call"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]},
            "messages[0].content[1].type",
        ),
    ],
)
def test_functions_of_old_and_pictures_in_messages_are_refused(message, field):
    with pytest.raises(Unimplemented, match="not supported yet") as failure:
        parse(messages=[message])
    assert failure.value.field == field


@pytest.mark.parametrize("field", ["tools", "logit_bias", "stop", "guided_choice", "response_format"])
def test_what_is_refused_or_too_long_is_never_built(field):
    body = b'{"messages": [{"role": "user", "content": "a"}], "%s": [' % field.encode() + b'"ab",' * 200_000 + b'""]}'
    tracemalloc.start()
    with pytest.raises((Invalid, Unimplemented)) as failure:
        parse_chat(body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert failure.value.field == field
    assert peak < 2 * len(body)  # built, the texts alone take ten times as much


def test_a_conversation_has_at_most_4096_messages():
    parse(messages=HELLO * 4096)
    with pytest.raises(Invalid, match="4097 messages, at most 4096") as failure:
        parse(messages=HELLO * 4097)
    assert failure.value.field == "messages"


def test_sixteen_stop_texts_of_full_length_fit_however_they_are_escaped():
    stops = ["\N{FOX FACE}" * 1024] * 16
    assert parse(stop=stops).stop == stops


def test_an_assistants_turn_may_carry_empty_lists():
    parse(messages=[{"role": "assistant", "content": "a", "tool_calls": [], "refusal": None, "audio": None}])


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "grammar", "field"),
    [
        ({"response_format": {"type": "json_object"}}, Grammar(json_schema={"type": "object"}), "response_format"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": SCHEMA},
                }
            },
            Grammar(json_schema=SCHEMA),
            "response_format",
        ),
        ({"guided_json": SCHEMA}, Grammar(json_schema=SCHEMA), "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, Grammar(json_schema=SCHEMA), "guided_json"),
        ({"guided_regex": "a+"}, Grammar(regex="a+"), "guided_regex"),
        ({"guided_choice": ["a", "b"]}, Grammar(choice=["a", "b"]), "guided_choice"),
        ({"guided_grammar": "start: /a/"}, Grammar(lark="start: /a/"), "guided_grammar"),
        ({"structured_outputs": {"json": SCHEMA}}, Grammar(json_schema=SCHEMA), "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a"}}, Grammar(regex="a"), "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a"]}}, Grammar(choice=["a"]), "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "x"}}, Grammar(lark="x"), "structured_outputs.grammar"),
        (
            {"structured_outputs": {"json_object": True}},
            Grammar(json_schema={"type": "object"}),
            "structured_outputs.json_object",
        ),
    ],
)
def test_what_an_answer_must_fit_is_understood_in_every_dialect(fields, grammar, field):
    request = parse(**fields)
    assert request.to_chat("ana").grammar == grammar
    assert request.field_of("grammar") == field
    assert request.field_of("temperature") == "temperature"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": False, "structural_tag": None}},
    ],
)
def test_what_demands_nothing_is_no_grammar(fields):
    assert parse(**fields).to_chat("ana").grammar is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"response_format": {}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": "json"}, "response_format"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs.regex",
        ),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
    ],
)
def test_a_demand_that_is_none_or_more_than_one_is_named(fields, field):
    with pytest.raises(Invalid) as failure:
        parse(**fields)
    assert failure.value.field == field


def test_a_structural_tag_is_not_supported_yet():
    with pytest.raises(Unimplemented) as failure:
        parse(structured_outputs={"structural_tag": {"a": 1}})
    assert failure.value.field == "structured_outputs.structural_tag"


def test_log_probabilities_are_asked_in_openais_two_fields():
    assert parse(top_logprobs=0).to_chat("ana").logprobs is None
    assert parse(logprobs=True).to_chat("ana").logprobs == 0
    assert parse(logprobs=True, top_logprobs=5).to_chat("ana").logprobs == 5


def test_a_missing_field_is_named():
    with pytest.raises(Invalid) as failure:
        parse_chat(b"{}")
    assert failure.value.field == "messages"


def test_both_limits_of_length_must_agree():
    assert parse(max_tokens=5, max_completion_tokens=5).to_chat("ana").max_tokens == 5
    with pytest.raises(Invalid) as failure:
        parse(max_tokens=5, max_completion_tokens=6)
    assert failure.value.field == "max_completion_tokens"


def test_top_k_minus_one_keeps_all_as_in_vllm():
    assert parse(top_k=-1).to_chat("ana").top_k == 0


def test_one_stop_text_is_a_list_of_one():
    assert parse(stop="END").to_chat("ana").stop == ["END"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"temperature": NaN, "messages": []}',
        b'{"temperature": 1e999, "messages": [{"role": "user", "content": "a"}]}',
        b"[" * 100_000,
        b'{"x": ' + b"[" * 100_000,
        b'{"tools": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_no_request_is_invalid(body):
    with pytest.raises(Invalid):
        parse_chat(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(sorted((*ChatRequest.__struct_fields__, *_REFUSED)))
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "tool"]) | JSON, "content": st.text() | JSON}),
    max_size=3,
)


@given(fields=st.dictionaries(FIELDS, JSON, max_size=5), messages=MESSAGES)
def test_any_json_is_taken_or_refused_in_our_words(fields, messages):
    body = json.dumps({"messages": messages, **fields}).encode()
    try:
        request = parse_chat(body)
    except MicrokernelError as error:
        assert isinstance(error, Invalid | Unimplemented)
        assert error.message
        return
    assert len(request.to_chat("ana").messages) == len(messages)


@given(body=st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused_in_our_words(body):
    try:
        parse_chat(body)
    except MicrokernelError as error:
        assert isinstance(error, Invalid | Unimplemented)
