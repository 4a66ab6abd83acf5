"""Bodies of requests for vectors, whatever they are."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.buffers import Array
from microkernel.errors import Invalid, Unimplemented
from services.gateway.openai_embeddings import EmbeddingRequest, embeddings_json, parse_embeddings
from services.inference.messages import MOST_TEXTS, Embeddings

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.dictionaries(st.sampled_from(EmbeddingRequest.__struct_fields__), JSON)


@given(body=st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_a_request_or_refused_as_invalid(body):
    with pytest.raises(Invalid):
        parse_embeddings(body)


@given(fields=FIELDS)
def test_any_fields_are_a_request_or_refused_by_name(fields):
    try:
        request = parse_embeddings(json.dumps(fields).encode())
    except (Invalid, Unimplemented) as error:
        assert error.field is None or error.field.partition("[")[0] in EmbeddingRequest.__struct_fields__
    else:
        assert request.to_embed("ann").owner == "ann"


def test_more_texts_than_there_may_be_are_refused():
    with pytest.raises(Invalid, match=f"'input' has {MOST_TEXTS + 1} texts"):
        parse_embeddings(json.dumps({"input": [""] * (MOST_TEXTS + 1)}).encode())


@pytest.mark.parametrize("given", ["[1]", "[ -1]", "[\n[3]]"])
def test_tokens_are_refused_as_not_supported(given):
    with pytest.raises(Unimplemented) as caught:
        parse_embeddings(f'{{"input": {given}}}'.encode())
    assert caught.value.field == "input"


def test_fields_of_errors_have_the_clients_names():
    one, many = EmbeddingRequest(input="a"), EmbeddingRequest(input=["a", "b"])
    assert (one.field_of("texts[0]"), many.field_of("texts[1]"), many.field_of("texts")) == (
        "input",
        "input[1]",
        "input",
    )
    assert (many.field_of("model"), many.field_of(None)) == ("model", None)


def test_an_answer_has_a_row_for_each_text():
    found = Embeddings(vectors=Array(bytes(24), "float32", (3, 2)), model="m", dimensions=2, tokens=9)
    for as_base64, row in ((False, [0.0, 0.0]), (True, "AAAAAAAAAAA=")):
        told = json.loads(embeddings_json(found, as_base64=as_base64))
        assert [item["embedding"] for item in told["data"]] == [row] * 3
        assert told["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
