"""Tools in a request, and calls of tools in an answer."""

from __future__ import annotations

import json

import pytest

from microkernel.errors import Invalid, Unimplemented
from services.gateway.openai_answer import ChunkWriter, completion_json
from services.gateway.openai_request import parse_chat
from services.gateway.openai_tools import whole_calls
from services.inference.messages import Piece

HELLO = [{"role": "user", "content": "2 + 2?"}]
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
CHOICE = {"type": "function", "function": {"name": "add"}}


def parse(**fields):
    return parse_chat(json.dumps({"messages": HELLO, **fields}).encode())


@pytest.mark.parametrize("choice", [None, "none", "auto", "required", CHOICE])
def test_tools_are_given_on_as_they_came(choice):
    chat = parse(tools=[ADD], tool_choice=choice).to_chat("ana")
    assert chat.tools == [ADD]
    assert chat.tool_choice == choice


@pytest.mark.parametrize("fields", [{}, {"tools": []}, {"tools": None, "tool_choice": "auto"}, {"tool_choice": "none"}])
def test_no_tools_are_no_tools(fields):
    chat = parse(**fields).to_chat("ana")
    assert (chat.tools, chat.tool_choice) == ([], None)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function.name"),
        ({"tools": [ADD, ADD]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "x" * 65}}]}, "tools[0].function.name"),
        ({"tools": "add"}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": f"f{n}"}} for n in range(129)]}, "tools"),
        ({"tools": [{**ADD, "function": {"name": "a", "description": "x" * (257 << 10)}}]}, "tools"),
        ({"tools": [ADD], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": CHOICE}, "tool_choice"),
    ],
)
def test_what_is_no_tool_is_named(fields, field):
    with pytest.raises(Invalid) as caught:
        parse(**fields)
    assert caught.value.field == field


def test_a_tool_that_is_no_function_is_not_supported():
    with pytest.raises(Unimplemented) as caught:
        parse(tools=[{"type": "web_search"}])
    assert caught.value.field == "tools[0].type"


def test_a_call_and_its_answer_are_turns():
    turns = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
    ]
    chat = parse(messages=turns).to_chat("ana")
    assert chat.messages[1].tool_calls == [CALL]
    assert (chat.messages[2].role, chat.messages[2].tool_call_id, chat.messages[2].content) == ("tool", "c1", "4")


@pytest.mark.parametrize(
    ("turn", "field"),
    [
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [{**CALL, "id": ""}]}, "messages[0].tool_calls[0].id"),
        ({"role": "assistant", "tool_calls": [{**CALL, "type": "x"}]}, "messages[0].tool_calls[0].type"),
        ({"role": "assistant", "tool_calls": [CALL] * 129}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": []}, "messages[0].content"),
        ({"role": "tool", "content": "4"}, "messages[0].tool_call_id"),
        ({"role": "tool", "tool_call_id": "c1"}, "messages[0].content"),
    ],
)
def test_a_turn_with_a_call_that_is_none_is_named(turn, field):
    with pytest.raises(Invalid) as caught:
        parse(messages=[turn])
    assert caught.value.field == field


PARTS = [
    {"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": ""}},
    {"index": 0, "function": {"arguments": '{"a"'}},
    {"index": 1, "id": "c2", "type": "function", "function": {"name": "sub", "arguments": "{}"}},
    {"index": 0, "function": {"arguments": ": 2}"}},
]
PIECES = [Piece(tool_calls=[part]) for part in PARTS] + [Piece(finish_reason="tool_calls")]


def test_parts_of_calls_are_put_together_by_their_index():
    assert whole_calls(PIECES) == [
        CALL,
        {"id": "c2", "type": "function", "function": {"name": "sub", "arguments": "{}"}},
    ]


@pytest.mark.parametrize("part", [{}, {"index": "x"}, {"function": 7}, {"index": 0, "function": {"name": None}}])
def test_a_part_that_is_none_harms_nobody(part):
    (call,) = whole_calls([Piece(tool_calls=[part])])
    assert call["function"] == {"name": "", "arguments": ""}


def test_a_whole_answer_has_its_calls_and_no_empty_text():
    body = json.loads(completion_json(answer_id="a", model="m", created=1, pieces=PIECES))
    (choice,) = body["choices"]
    assert choice["message"]["content"] is None
    assert [call["id"] for call in choice["message"]["tool_calls"]] == ["c1", "c2"]
    assert choice["finish_reason"] == "tool_calls"


def test_a_stream_has_the_parts_as_they_come():
    writer = ChunkWriter(answer_id="a", model="m", created=1, include_usage=False)
    chunk = json.loads(writer.piece(PIECES[1]).removeprefix(b"data: "))
    assert chunk["choices"][0]["delta"] == {"tool_calls": [PARTS[1]]}
