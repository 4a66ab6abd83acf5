"""Errors as HTTP answers in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

Statuses follow gRPC's own mapping (https://cloud.google.com/apis/design/errors#handling_errors); types and codes are
those that OpenAI's clients know, https://platform.openai.com/docs/guides/error-codes.
"""

from __future__ import annotations

import math

import msgspec
from aiohttp import web

from microkernel.errors import Code, MicrokernelError

__all__ = ["ErrorAnswer", "ErrorBody", "answer_for", "error_json", "error_response"]

RETRY_AFTER = 1.0  # seconds, where the error does not say
REQUEST = "invalid_request_error"
SERVER = "server_error"


class ErrorBody(msgspec.Struct, frozen=True):
    """What stands under `error`."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(msgspec.Struct, frozen=True):
    """An error as it goes out."""

    status: int
    error: ErrorBody
    headers: dict[str, str] = {}

    def json(self) -> bytes:
        """The body."""
        return error_json(self.error)


_BY_CODE: dict[Code, tuple[int, str, str]] = {
    Code.INVALID: (400, REQUEST, "invalid_value"),
    Code.PRECONDITION: (400, REQUEST, "failed_precondition"),
    Code.UNAUTHENTICATED: (401, REQUEST, "invalid_api_key"),
    Code.DENIED: (403, "permission_error", "permission_denied"),
    Code.NOT_FOUND: (404, REQUEST, "not_found"),
    Code.EXISTS: (409, REQUEST, "already_exists"),
    Code.ABORTED: (409, SERVER, "aborted"),
    Code.GONE: (410, REQUEST, "gone"),
    Code.TOO_BIG: (413, REQUEST, "too_big"),
    Code.OVERLOADED: (429, "rate_limit_error", "overloaded"),
    Code.CANCELLED: (499, SERVER, "cancelled"),
    Code.INTERNAL: (500, SERVER, "internal_error"),
    Code.DATA_LOSS: (500, SERVER, "data_loss"),
    Code.DEADLOCK: (500, SERVER, "deadlock"),
    Code.UNIMPLEMENTED: (501, SERVER, "unimplemented"),
    Code.UNAVAILABLE: (503, SERVER, "unavailable"),
    Code.DEADLINE: (504, SERVER, "deadline_exceeded"),
}


def answer_for(error: MicrokernelError, *, code: str | None = None) -> ErrorAnswer:
    """How `error` is answered; `code` is OpenAI's word for it where the caller knows a closer one."""
    status, kind, usual = _BY_CODE[error.code]
    if error.code is Code.UNIMPLEMENTED and error.field is not None:
        # A field of the request that is not supported: the asker's to change.
        status, kind, usual = 400, REQUEST, "unsupported_parameter"
    return ErrorAnswer(status, ErrorBody(str(error), kind, error.field, code or usual), _headers(error))


def error_json(error: ErrorBody) -> bytes:
    """The JSON text of an error, as a body or as a stream's event."""
    return msgspec.json.encode({"error": error})


def error_response(answer: ErrorAnswer) -> web.Response:
    """An error as a response."""
    return web.Response(
        status=answer.status,
        reason="Cancelled" if answer.status == 499 else None,  # nginx's number, which http.HTTPStatus does not know
        body=answer.json(),
        headers=answer.headers,
        content_type="application/json",
    )


def _headers(error: MicrokernelError) -> dict[str, str]:
    if error.code is Code.UNAUTHENTICATED:
        return {"WWW-Authenticate": 'Bearer realm="microkernel"'}
    if error.code in {Code.OVERLOADED, Code.UNAVAILABLE}:
        seconds = RETRY_AFTER if error.retry_after is None else max(0.0, error.retry_after)
        # Whole seconds for everybody, and exactly for OpenAI's own client, which reads both.
        return {"Retry-After": str(max(1, math.ceil(seconds))), "Retry-After-Ms": str(round(seconds * 1000))}
    return {}
