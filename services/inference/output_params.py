"""Checks what a request demands of its answer, and puts it as the engine takes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from microkernel.errors import Invalid
from services.inference.engine.logprobs import MOST
from services.inference.messages import OutputParams

__all__ = ["check_begun", "check_output", "logit_bias", "stop_tokens"]

MAX_BIASED = 1024  # tokens
MAX_STOP_TOKENS = 64
STRONGEST = 100.0  # of a bias, as OpenAI has it


def check_output(params: OutputParams, max_tokens: int, vocab_size: int) -> None:
    """Raise `Invalid` that names the field which no answer of such a model could follow."""
    if params.logprobs is not None and not 0 <= params.logprobs <= MOST:
        raise Invalid(f"logprobs is {params.logprobs}, allowed is 0 to {MOST}", field="logprobs")
    if not 0 <= params.min_tokens <= max_tokens:
        raise Invalid(
            f"min_tokens is {params.min_tokens}, allowed is 0 to max_tokens ({max_tokens})", field="min_tokens"
        )
    if params.ignore_eos and params.grammar is not None:
        raise Invalid("with a grammar, an answer ends where the grammar does", field="ignore_eos")
    if len(params.stop_token_ids) > MAX_STOP_TOKENS:
        raise Invalid(
            f"stop_token_ids has {len(params.stop_token_ids)} tokens, at most {MAX_STOP_TOKENS}", field="stop_token_ids"
        )
    _check_tokens(params.stop_token_ids, vocab_size, "stop_token_ids")
    if len(params.logit_bias) > MAX_BIASED:
        raise Invalid(f"logit_bias has {len(params.logit_bias)} tokens, at most {MAX_BIASED}", field="logit_bias")
    for name, value in params.logit_bias.items():
        if not re.fullmatch("[0-9]{1,10}", name):
            raise Invalid(f"logit_bias has the key {name[:40]!r}, which is no token id", field="logit_bias")
        if not -STRONGEST <= value <= STRONGEST:
            raise Invalid(
                f"logit_bias of token {name} is {value!r}, allowed is {-STRONGEST:g} to {STRONGEST:g}",
                field="logit_bias",
            )
    _check_tokens(map(int, params.logit_bias), vocab_size, "logit_bias")


def check_begun(begun: Sequence[int], max_tokens: int, vocab_size: int) -> None:
    """Raise `Invalid` for tokens that are no beginning of an answer of `max_tokens`."""
    if begun and len(begun) >= max_tokens:
        raise Invalid(f"{len(begun)} tokens are there already, of at most {max_tokens}", field="begun")
    _check_tokens(begun, vocab_size, "begun")


def stop_tokens(params: OutputParams, ends: frozenset[int]) -> frozenset[int]:
    """What ends the answer; `ends` are the model's own end tokens."""
    return frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else ends)


def logit_bias(params: OutputParams) -> tuple[tuple[int, float], ...]:
    """The biases by token, each token once."""
    return tuple({int(name): value for name, value in params.logit_bias.items()}.items())


def _check_tokens(tokens: Iterable[int], vocab_size: int, field: str) -> None:
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise Invalid(f"{field} has the token {token}, the model has 0 to {vocab_size - 1}", field=field)
