"""What a caller gives, as the handler takes it (hot: once a message that is not of the handler's type yet)."""

from __future__ import annotations

import functools
from typing import Any

import msgspec

from microkernel.buffers import decode_custom
from microkernel.errors import Invalid
from microkernel.message import convert, invalid_from
from microkernel.service import Handler

__all__ = ["arguments_of", "decoder_of", "either"]


def either(to: str, message: Any, fields: dict[str, Any] | None) -> Any:
    """The message to `to`, given whole or by its fields; None for neither. Raises `Invalid` for both."""
    if message is None:
        return fields or None
    if fields:
        raise Invalid(f"{to} was given a message and the fields {', '.join(fields)}: give one or the other")
    return message


def arguments_of(to: str, handler: Handler, message: Any, fields: dict[str, Any] | None) -> tuple[Any, ...]:
    """The arguments of `handler`, reached as `to`, for a message in any form or for fields. Raises `Invalid`."""
    message = either(to, message, fields)
    if message is None:
        message = {}
    kind = handler.message
    if not handler.takes_message:
        return ()
    if type(message) is kind:
        return (message,)
    if isinstance(message, msgspec.Raw):
        return (_decode(to, message, kind),)
    return (convert(message, kind, what=to),)


@functools.lru_cache(maxsize=1024)
def decoder_of(kind: Any) -> msgspec.json.Decoder[Any]:
    """The decoder of a message type; made once, it is twice as quick as one that is looked up."""
    return msgspec.json.Decoder(kind, dec_hook=decode_custom)


def _decode(to: str, raw: msgspec.Raw, kind: Any) -> Any:
    try:
        return msgspec.json.decode(raw or b"{}", type=kind, dec_hook=decode_custom)
    except msgspec.ValidationError as error:
        raise invalid_from(error, to) from error
    except msgspec.DecodeError as error:
        raise Invalid(f"{to}: the body is not JSON: {error}") from error
