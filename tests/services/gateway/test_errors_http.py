"""Every error of ours has its place in HTTP."""

from __future__ import annotations

import json

import pytest

from microkernel import errors
from microkernel.errors import Code, ErrorReport, Overloaded, Unauthenticated, Unavailable, Unimplemented, from_report
from services.gateway.errors_http import answer_for

STATUSES = {
    Code.CANCELLED: 499,
    Code.INVALID: 400,
    Code.DEADLINE: 504,
    Code.NOT_FOUND: 404,
    Code.EXISTS: 409,
    Code.DENIED: 403,
    Code.OVERLOADED: 429,
    Code.PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
    Code.DEADLOCK: 500,
    Code.TOO_BIG: 413,
    Code.GONE: 410,
}


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_a_status_and_openais_shape(code):
    answer = answer_for(from_report(ErrorReport(code, "it failed", field=None)))
    assert answer.status == STATUSES[code]
    error = json.loads(answer.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] == "it failed"
    assert error["type"]
    assert error["code"]


def test_the_remedy_is_told_and_the_field_is_the_param():
    error = answer_for(errors.Invalid("too hot", remedy="use 0 to 2", field="temperature")).error
    assert error.message == "too hot (use 0 to 2)"
    assert error.param == "temperature"
    assert error.type == "invalid_request_error"


def test_a_field_that_is_not_supported_is_the_askers_to_change():
    answer = answer_for(Unimplemented("'tools' is not supported yet", field="tools"))
    assert answer.status == 400
    assert answer.error.code == "unsupported_parameter"


def test_a_closer_word_is_taken():
    assert answer_for(errors.NotFound("no model"), code="model_not_found").error.code == "model_not_found"


@pytest.mark.parametrize(
    ("seconds", "header", "exact"), [(None, "1", "1000"), (0.2, "1", "200"), (2.1, "3", "2100"), (30, "30", "30000")]
)
@pytest.mark.parametrize("kind", [Overloaded, Unavailable])
def test_who_shall_come_back_is_told_when(kind, seconds, header, exact):
    headers = answer_for(kind("full", retry_after=seconds)).headers
    assert headers == {"Retry-After": header, "Retry-After-Ms": exact}


def test_who_is_not_known_is_told_how_to_show_a_token():
    assert answer_for(Unauthenticated("who?")).headers == {"WWW-Authenticate": 'Bearer realm="microkernel"'}
