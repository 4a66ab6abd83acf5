"""What goes out: every chunk is JSON that OpenAI's own types take."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.model import Model

from services.gateway.openai_answer import DONE, ChunkWriter, completion_json, event, model_json, models_json
from services.inference.messages import LoadedModel, Piece, Usage

USAGE = Usage(prompt_tokens=3, completion_tokens=2)


def events(text: bytes) -> list:
    """The JSON of the events in `text`."""
    assert text.endswith(b"\n\n")
    parts = text[:-2].split(b"\n\n")
    assert all(part.startswith(b"data: ") for part in parts)
    return [json.loads(part[6:]) for part in parts]


def writer(*, include_usage: bool = False) -> ChunkWriter:
    return ChunkWriter(answer_id="chatcmpl-1", model='a "quoted" model', created=9, include_usage=include_usage)


@given(text=st.text(min_size=1))
def test_a_piece_is_one_event_whatever_its_text(text):
    (chunk,) = events(writer().piece(Piece(text=text)))
    assert chunk["choices"] == [{"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}]
    assert chunk["id"] == "chatcmpl-1"
    assert chunk["model"] == 'a "quoted" model'
    assert "usage" not in chunk
    ChatCompletionChunk.model_validate(chunk, strict=True)


def test_the_opening_says_who_speaks():
    (chunk,) = events(writer().opening())
    assert chunk["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    ChatCompletionChunk.model_validate(chunk, strict=True)


def test_a_piece_that_says_nothing_is_no_event():
    assert writer().piece(Piece(pid=5)) == b""


def test_the_last_content_chunk_has_the_reason():
    (chunk,) = events(writer().piece(Piece(text="!", finish_reason="length", usage=USAGE)))
    assert chunk["choices"][0]["delta"] == {"content": "!"}
    assert chunk["choices"][0]["finish_reason"] == "length"
    (chunk,) = events(writer().piece(Piece(finish_reason="stop", usage=USAGE)))
    assert chunk["choices"][0]["delta"] == {}
    ChatCompletionChunk.model_validate(chunk, strict=True)


def test_usage_comes_last_in_a_chunk_of_its_own_and_is_null_before():
    chunks = writer(include_usage=True)
    assert events(chunks.piece(Piece(text="a")))[0]["usage"] is None
    closing = chunks.closing(USAGE)
    assert closing.endswith(DONE)
    (chunk,) = events(closing.removesuffix(DONE))
    assert chunk["choices"] == []
    assert chunk["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    ChatCompletionChunk.model_validate(chunk, strict=True)


def test_without_the_wish_for_usage_nothing_comes_before_done():
    assert writer().closing(USAGE) == b"data: [DONE]\n\n"
    assert writer(include_usage=True).closing(None) == DONE


def test_a_whole_answer_joins_its_pieces():
    body = completion_json(
        answer_id="chatcmpl-1",
        model="m",
        created=9,
        pieces=[Piece(), Piece(text="a"), Piece(text="é\n"), Piece(text="z", finish_reason="stop", usage=USAGE)],
    )
    answer = ChatCompletion.model_validate_json(body, strict=True)
    assert answer.choices[0].message.content == "aé\nz"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 5


def test_models_that_do_not_answer_are_not_listed():
    listed = json.loads(
        models_json(
            [
                LoadedModel(name="c", state="stored"),
                LoadedModel(name="b", state="ready"),
                LoadedModel(name="z", state="ready", default=True),
                LoadedModel(name="a", state="loading"),
                LoadedModel(name="d", state="failed"),
            ]
        )
    )
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["z", "b", "c"]


def test_a_model_has_openais_fields_and_vllms_length():
    model = json.loads(model_json(LoadedModel(name="m", state="ready", created=4, context_length=512)))
    Model.model_validate(model, strict=True)
    assert model["max_model_len"] == 512


def test_an_event_is_a_line_of_data():
    assert event(b"{}") == b"data: {}\n\n"
