"""Writes answers by a grammar with logits of chance: what a model says that knows nothing."""

from __future__ import annotations

import torch

from formats.text.tokenizer import Tokenizer
from services.inference.engine.constraints import Constraint
from services.inference.engine.sampler import NO_TOKEN, ResolvedSampling, SamplerState, sample
from services.inference.grammar.matcher import CompiledGrammar


def state(grammar: CompiledGrammar | None, tokenizer: Tokenizer, seed: int = 0, **fields) -> SamplerState:
    params = {name: fields.pop(name) for name in tuple(fields) if name in ResolvedSampling.__struct_fields__}
    constraint = Constraint(**{"stop_tokens": tokenizer.eos_ids, "grammar": grammar, **fields})
    vocab_size = grammar.vocab_size if grammar else tokenizer.vocab_size
    return SamplerState(ResolvedSampling(seed=seed, **params), [], vocab_size, constraint=constraint)


def write(grammar: CompiledGrammar, tokenizer: Tokenizer, seed: int, *, most: int = 400, **fields) -> str | None:
    """The text of an answer; None if it is not whole after `most` tokens."""
    one = state(grammar, tokenizer, seed, **fields)
    chance = torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    while len(tokens) < most:
        token = int(sample(torch.randn(1, grammar.vocab_size, generator=chance), [one]))
        if token == NO_TOKEN:
            assert one.constraint is not None
            raise one.constraint.failure or AssertionError("no token, and no reason")
        if token in tokenizer.eos_ids:
            return tokenizer.decode(tokens, continues=True)
        tokens.append(token)
        if one.complete:
            return tokenizer.decode(tokens, continues=True)
    return None


class Letters:
    """As much of a tokenizer as grammars need: token n is the byte n, and 0 ends an answer."""

    vocab_size = 256
    special_ids = frozenset({0})
    eos_ids = frozenset({0})

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < self.vocab_size else b""

    def encode(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]:
        return list(text.encode())
