"""What a step gives whoever asked: a token, or the error that ended the sequence."""

from __future__ import annotations

import msgspec

from microkernel.errors import MicrokernelError, from_exception
from services.inference.engine import logprobs
from services.inference.engine.sampler import NO_TOKEN

__all__ = ["Output", "broken"]


class Output(msgspec.Struct, frozen=True):
    """What a step gave one sequence. After a `finish_reason` (stop, complete, length) or an `error` no more comes.

    With "stop", `token` is the stop token, which is no text. With "complete" it is text, behind which the grammar lets
    nothing follow. With an error it is -1. Of the prompt's tokens, `cached` did not have to be computed. `logprobs` are
    there if the request asks for them.
    """

    id: int
    token: int
    finish_reason: str | None = None
    error: MicrokernelError | None = None
    cached: int = 0
    logprobs: logprobs.Logprobs | None = None


def broken(request: int, error: Exception) -> Output:
    """What ends a sequence with an error, whatever was raised."""
    return Output(request, NO_TOKEN, error=from_exception(error, service="inference"))
