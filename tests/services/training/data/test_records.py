"""Records: the forms that data sets come in, and what is wrong with those that are left out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.errors import Invalid
from services.training.data.records import Chat, ChatTurn, Completion, Text, content_digest, kind_of, read_record

USER = {"role": "user", "content": "u"}
ANSWER = {"role": "assistant", "content": "a"}
CHAT = Chat((ChatTurn("user", "u"), ChatTurn("assistant", "a")))


@pytest.mark.parametrize(
    ("value", "record"),
    [
        ({"text": "a"}, Text("a")),
        ({"text": "a", "content": "b", "id": 3}, Text("a")),
        ({"content": "a", "id": 3}, Text("a")),
        ({"messages": [USER, ANSWER], "prompt": "u"}, CHAT),
        ({"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]}, CHAT),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "u"}], "name": None}, ANSWER]}, CHAT),
        ({"prompt": "p", "completion": "c", "text": "pc"}, Completion("p", "c")),
        ({"prompt": "", "completion": "c"}, Completion("", "c")),
        ({"instruction": "i", "input": "n", "output": "o", "text": "t"}, Completion("i\n\nn\n\n", "o")),
        ({"instruction": "i", "input": "", "output": "o"}, Completion("i\n\n", "o")),
        ({"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]},
         Chat((ChatTurn("user", "u"), ChatTurn("assistant", "a", learned=False), *CHAT.messages))),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_record_is_known_by_its_fields(value, record):
    assert read_record(value, kind_of(value)) == record


@pytest.mark.parametrize(
    ("value", "kind", "why"),
    [
        (3, "text", "a number, not an object"),
        (None, "text", "null, not an object"),
        ({}, "text", "no text"),
        ({"text": 5}, "text", "a number as text"),
        ({"text": " \n"}, "text", "empty text"),
        ({"text": "\ud800"}, "text", "lone surrogate"),
        ({"content": "a", "title": "b"}, "text", "no text"),
        ({"prompt": "p"}, "completion", "no completion"),
        ({"prompt": ["p"], "completion": "c"}, "completion", "a list as prompt"),
        ({"prompt": "p", "completion": ""}, "completion", "empty completion"),
        ({"text": "a"}, "chat", "no messages"),
        ({"messages": {}}, "chat", "an object as messages"),
        ({"messages": []}, "chat", "no messages in its list"),
        ({"messages": [USER, 5]}, "chat", r"a number as messages\[1\]"),
        ({"messages": [USER]}, "chat", "nothing that the assistant answers"),
        ({"messages": [ANSWER]}, "chat", "nothing that the assistant answers"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "chat", "nothing that the assistant answers"),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "chat", "weight 0.5"),
        ({"messages": [USER, {**ANSWER, "weight": []}]}, "chat", "weight"),
        ({"messages": [{"role": "oracle", "content": "x"}, ANSWER]}, "chat", r"role 'oracle' in messages\[0\]"),
        ({"messages": [{"role": [], "content": "x"}, ANSWER]}, "chat", "role"),
        ({"messages": [{"content": "x"}, ANSWER]}, "chat", "role 'None'"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "chat", r"empty messages\[1\]"),
        ({"messages": [{"role": "user"}, ANSWER]}, "chat", r"empty messages\[0\]"),
        ({"messages": [{"role": "user", "content": 3}, ANSWER]}, "chat", "a number as content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "chat", "no text"),
        ({"messages": [{**USER, "name": 3}, ANSWER]}, "chat", "a number as name"),
        ({"messages": [USER, {**ANSWER, "tool_calls": "x"}]}, "chat", "tool_calls"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"x": "\udfff"}]}]}, "chat", "lone surrogate"),
        ({"messages": [USER, ANSWER], "tools": [{}]}, "chat", "has tools"),
        ({"messages": [USER, ANSWER] * 600}, "chat", "1200 messages"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_record_is_said(value, kind, why):
    with pytest.raises(Invalid, match=why):
        read_record(value, kind)


@pytest.mark.parametrize("value", [{}, {"title": "x"}, {"content": "a", "body": "b"}, {"prompt": "p"}, [], "x"])
def test_an_object_of_no_known_form_is_refused(value):
    with pytest.raises(Invalid):
        kind_of(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from([
            "text", "messages", "conversations", "prompt", "completion", "instruction", "output", "role", "content",
            "from", "value", "tool_calls", "weight", "name", "type",
        ]),
        inner | st.sampled_from(["user", "assistant", "human", "gpt", "text"]),
        max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip


@given(value=JSON, kind=st.sampled_from(["text", "chat", "completion"]))
def test_any_json_is_a_record_or_refused_in_one_line(value: Any, kind: Any):
    try:
        content_digest(read_record(value, kind))
    except Invalid as refused:
        assert "\n" not in refused.message
    else:
        assert isinstance(value, dict)


def test_the_same_content_has_the_same_digest_in_whatever_form_it_came():
    one = read_record({"messages": [USER, ANSWER], "id": 1}, "chat")
    other = read_record({"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]}, "chat")
    assert content_digest(one) == content_digest(other)
    assert content_digest(Text("a")) != content_digest(Text("b"))
