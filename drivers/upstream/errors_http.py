"""What a server's refusal means here: HTTP statuses and OpenAI's error bodies as our errors. Plain functions.

https://platform.openai.com/docs/guides/error-codes. What a server says of its error is told on: one line, cut short.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from microkernel.errors import (
    Invalid,
    MicrokernelError,
    NotFound,
    Overloaded,
    PreconditionFailed,
    TooBig,
    Unavailable,
    Unimplemented,
)

__all__ = ["error_in_stream", "error_of"]

LONGEST = 300  # characters of what a server says
LONGEST_WAIT = 3600.0  # seconds that it can have us wait
RETRY_AFTER = 1.0
TOO_LONG = frozenset({"context_length_exceeded", "too_big"})
NOT_NOW = frozenset({408, 409, 425})
NOT_RUN = frozenset({502, 503})  # what stands before a server says that it is not there

# Our own words, from a node that streams its error, with the status that it would have sent.
STATUSES = {
    "invalid_value": 400,
    "unsupported_parameter": 400,
    "not_found": 404,
    "model_not_found": 404,
    "overloaded": 429,
    "rate_limit_exceeded": 429,
    "unavailable": 503,
}


class _Said(msgspec.Struct, frozen=True):
    """What an error body says, in whichever of its shapes."""

    message: str
    param: str | None = None
    code: str | int | None = None


def error_of(
    status: int, headers: Mapping[str, str], body: bytes, *, model: str = "", key: str | None = None
) -> MicrokernelError:
    """The error that an answer with such a `status` is; `key` tells where the key is from, None where there is none."""
    said = _said(body)
    if status in {401, 403}:
        about = "asks for a key" if key is None else f"does not take the key of {key}"
        return PreconditionFailed(
            f"it {about}{_told(said)}", remedy="see key_env and key_file of the server in the configuration"
        )
    if status == 402:
        return PreconditionFailed(f"it asks for payment{_told(said)}", remedy="see the account there")
    if 300 <= status < 400:
        host = urlsplit(headers.get("Location", "")).netloc[:100]
        return Unavailable(
            f"it sends us on to {host or 'somewhere else'}, where nobody follows",
            remedy="put the address that it means into the configuration",
            may_have_run=False,
        )
    return _by_status(status, said, _wait(headers), model)


def error_in_stream(data: bytes) -> MicrokernelError:
    """The error that an event tells of, within an answer that had begun."""
    said = _said(data)
    code = said.code
    status = code if isinstance(code, int) and 400 <= code < 600 else STATUSES.get(str(code), 500)
    error = _by_status(status, said, None, "")
    if isinstance(error, Unavailable):
        error.may_have_run = True
    return error


def _by_status(status: int, said: _Said, wait: float | None, model: str) -> MicrokernelError:
    told = _told(said)
    if status == 429:
        return Overloaded(f"it has too many requests{told}", retry_after=RETRY_AFTER if wait is None else wait)
    if status == 404:
        return NotFound(f"it has no model '{model}'{told}" if model else f"not found{told}", field="model")
    if status == 413 or said.code in TOO_LONG:
        return TooBig(f"the request is too long for it{told}")
    if status == 501:
        return Unimplemented(f"it cannot do that{told}", field=said.param)
    if 400 <= status < 500 and status not in NOT_NOW:
        return Invalid(f"it refuses the request ({status}){told}", field=said.param)
    return Unavailable(f"it failed ({status}){told}", retry_after=wait, may_have_run=status not in NOT_RUN)


def _said(body: bytes) -> _Said:
    """What stands in OpenAI's `error`, FastAPI's `detail`, or a `message` at the top; nothing for a page of HTML."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = body[: 4 * LONGEST].decode("utf-8", "replace")
        return _Said("" if "<" in text else _one_line(text))
    if isinstance(found, dict) and isinstance(found.get("error"), dict | str):
        found = found["error"]
    if isinstance(found, str):
        return _Said(_one_line(found))
    if not isinstance(found, dict):
        return _Said("")
    message = found.get("message", found.get("detail"))
    if isinstance(message, list) and message and isinstance(message[0], dict):
        message = message[0].get("msg")
    return _Said(_one_line(message), _name(found.get("param")), _code(found.get("code")))


def _one_line(value: Any) -> str:
    text = " ".join(value[: 4 * LONGEST].split()) if isinstance(value, str) else ""
    text = "".join(character for character in text if character.isprintable())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= 64 and value.isprintable() else None


def _code(value: Any) -> str | int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else _name(value)


def _told(said: _Said) -> str:
    return f": {said.message}" if said.message else ""


def _wait(headers: Mapping[str, str]) -> float | None:
    """Seconds to come back in, where a server names them; a date is nothing that two clocks would agree on."""
    for name, unit in (("Retry-After-Ms", 1000.0), ("Retry-After", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0.0:
            return min(seconds, LONGEST_WAIT)
    return None
