"""What OpenAI's clients ask of `POST /v1/embeddings`, checked and turned into an `Embed`, and what they are told.

https://platform.openai.com/docs/api-reference/embeddings/create. A field that we do not know is ignored.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from microkernel.errors import Invalid, Unimplemented
from microkernel.message import fault_of
from services.inference.messages import MOST_TEXTS, Embed, Embeddings

__all__ = ["EmbeddingRequest", "embeddings_json", "parse_embeddings"]

MAX_NAME = 512
FLOAT = 4  # bytes
BEGIN = 64  # bytes of the input that show what it is
TOKENS = re.compile(rb"\[\s*[\[0-9-]")


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of the request. The client asks for base64 by itself: it is smaller, and quicker to read."""

    input: str | list[str]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None

    def to_embed(self, owner: str) -> Embed:
        """The same for the inference service, on behalf of `owner`."""
        texts = [self.input] if isinstance(self.input, str) else self.input
        return Embed(texts=texts, model=self.model or None, dimensions=self.dimensions, owner=owner)

    def field_of(self, field: str | None) -> str | None:
        """The client's name of a field of `Embed` that an error names."""
        if field is None or not field.startswith("texts"):
            return field
        return "input" if isinstance(self.input, str) else "input" + field.removeprefix("texts")


class _Outline(msgspec.Struct):
    input: msgspec.Raw = msgspec.Raw(b"null")


_outline_decoder = msgspec.json.Decoder(_Outline)
_decoder = msgspec.json.Decoder(EmbeddingRequest)
_encode = msgspec.json.Encoder().encode


def parse_embeddings(body: bytes | bytearray) -> EmbeddingRequest:
    """The request in `body`. Raises `Invalid`, and `Unimplemented` for tokens; both name the field."""
    try:
        _refuse_tokens(bytes(memoryview(_outline_decoder.decode(body).input)[:BEGIN]))
        request = _decoder.decode(body)
    except msgspec.ValidationError as error:
        sentence, field = fault_of(error)
        if field is None and sentence.startswith("Object missing required field"):
            field = sentence.partition("`")[2].rstrip("`")
        raise Invalid(sentence + (f" in '{field}'" if field else ""), field=field) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"the body is not JSON: {error}") from error
    except RecursionError as error:
        raise Invalid("the body is nested too deeply") from error
    if request.model is not None and len(request.model) > MAX_NAME:
        raise Invalid(f"'model' has {len(request.model)} characters, at most {MAX_NAME}", field="model")
    if not isinstance(request.input, str) and not 1 <= len(request.input) <= MOST_TEXTS:
        raise Invalid(f"'input' has {len(request.input)} texts, allowed are 1 to {MOST_TEXTS}", field="input")
    return request


def embeddings_json(found: Embeddings, *, as_base64: bool) -> bytes:
    """The answer: vectors as lists of numbers, or as base64 of float32 in little endian."""
    rows = _base64_rows(found) if as_base64 else _number_rows(found)
    return _encode(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)],
            "model": found.model,
            "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
        }
    )


def _refuse_tokens(begin: bytes) -> None:
    """Tokens are those of a model of OpenAI's, and mean something else to another."""
    if TOKENS.match(begin):
        raise Unimplemented("'input' has tokens, and only texts have vectors here", field="input")


def _base64_rows(found: Embeddings) -> Iterator[Any]:
    view, size = found.vectors.view(), found.dimensions * FLOAT
    return (base64.b64encode(view[start : start + size]).decode() for start in range(0, len(view), size))


def _number_rows(found: Embeddings) -> Iterator[Any]:
    numbers, size = found.vectors.view().cast("f"), found.dimensions
    return (numbers[start : start + size].tolist() for start in range(0, len(numbers), size))
