"""What a server says of its models, out of `GET /models`. Plain functions.

https://platform.openai.com/docs/api-reference/models/list. `max_model_len` is vLLM's, which SGLang and our gateway tell
too, `meta.n_ctx_train` llama.cpp's.
"""

from __future__ import annotations

from typing import Any

import msgspec

from drivers.upstream.dialects import Dialect, dialect_of
from drivers.upstream.events import BadAnswer
from microkernel.model_server import ServedModel

__all__ = ["Listing", "listing_of"]

MOST = 1024
LONGEST = 512  # characters of a name; what the gateway takes
LARGEST = 1 << 40


class Listing(msgspec.Struct, frozen=True):
    """The models, and what kind of server it is."""

    models: tuple[ServedModel, ...]
    dialect: Dialect


class _Meta(msgspec.Struct, frozen=True):
    n_ctx_train: Any = None


class _Model(msgspec.Struct, frozen=True):
    id: str
    created: Any = None
    owned_by: str | None = None
    max_model_len: Any = None
    meta: _Meta | None = None
    embeds: bool | None = None  # our gateway's word for models that write nothing


class _List(msgspec.Struct, frozen=True):
    data: list[_Model] | None = None


_decoder = msgspec.json.Decoder(_List)


def listing_of(body: bytes) -> Listing:
    """Raises `BadAnswer` for what is no list of models."""
    try:
        found = _decoder.decode(body).data or []
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadAnswer(f"its list of models is not what the API has: {error}") from error
    if len(found) > MOST:
        raise BadAnswer(f"it lists {len(found)} models, at most {MOST}: name those to use in `models`")
    usable = [model for model in found if 0 < len(model.id) <= LONGEST and model.id.isprintable() and not model.embeds]
    models = {
        model.id: ServedModel(
            name=model.id,
            context_length=_number(model.max_model_len) or _number(model.meta.n_ctx_train if model.meta else None),
            created=_number(model.created),
        )
        for model in usable
    }
    return Listing(tuple(models.values()), dialect_of(model.owned_by or "" for model in found))


def _number(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and 0 <= value < LARGEST else 0
