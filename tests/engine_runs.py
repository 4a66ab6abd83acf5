"""Runs an engine, collects what its requests get, and counts what that takes."""

from __future__ import annotations

from services.inference.engine.engine import Engine

MOST_STEPS = 5000  # more than the requests of any test take


def step(engine: Engine, tokens: dict[int, list[int]]) -> None:
    """One step, whose tokens are added to `tokens` by request; stops at the first error."""
    for output in engine.step():
        if output.error is not None:
            raise output.error
        tokens.setdefault(output.id, []).append(output.token)


def run(engine: Engine, tokens: dict[int, list[int]] | None = None) -> dict[int, list[int]]:
    """All tokens by request, once everything has ended; with `tokens`, those that came before too."""
    tokens = {} if tokens is None else tokens
    for _ in range(MOST_STEPS):
        if engine.idle:
            return tokens
        step(engine, tokens)
    raise AssertionError("the engine does not come to an end")


class Counting:
    """Counts a decoder's tokens, and those of each of its `steps`; `prompt_tokens` came several at a time."""

    def __init__(self, decoder) -> None:
        self._decoder = decoder
        self.tokens = self.prompt_tokens = 0
        self.steps: list[int] = []

    def __getattr__(self, name: str):
        return getattr(self._decoder, name)

    def forward(self, storage, parts):
        counts = [len(part.tokens) for part in parts]
        self.tokens += sum(counts)
        self.steps.append(sum(counts))
        self.prompt_tokens += sum(count for count in counts if count > 1)
        return self._decoder.forward(storage, parts)
