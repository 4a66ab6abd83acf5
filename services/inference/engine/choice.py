"""The tokens that a step gives: one for each sequence, and more where guesses were right; hot: once a step."""

from __future__ import annotations

from collections.abc import Sequence as Several

import torch

from microkernel.errors import DataLoss, MicrokernelError, from_exception
from services.inference.engine.logprobs import Logprobs
from services.inference.engine.logprobs import take as take_logprobs
from services.inference.engine.sampler import NO_TOKEN, SamplerState, sample
from services.inference.engine.sequence import Sequence

__all__ = ["Answer", "choose"]


class Answer:
    """What one sequence gets from a step: a token, and one more for each guess that was right."""

    __slots__ = ("error", "guessed", "logprobs", "row", "sequence", "tokens")

    def __init__(self, sequence: Sequence, row: int, guessed: list[int] | None = None) -> None:
        self.sequence = sequence
        self.row = row
        self.guessed = guessed or []
        self.tokens: list[int] = []
        self.logprobs: list[Logprobs | None] = []
        self.error: MicrokernelError | None = None

    def add(self, token: int | MicrokernelError, likely: Logprobs | None) -> None:
        """Take what was chosen, and how likely it was."""
        if isinstance(token, MicrokernelError):
            self.error = token
        else:
            self.tokens.append(token)
            self.logprobs.append(likely)
            self.sequence.tokens.append(token)

    def was_right(self, place: int) -> bool:
        """Whether the guess at `place` is what was chosen there, and the answer goes on."""
        if self.error is not None or place >= len(self.guessed) or self.tokens[place] != self.guessed[place]:
            return False
        return self.sequence.ended_by(self.tokens[place]) is None


def choose(logits: torch.Tensor, answers: Several[Answer]) -> None:
    """Sample a token for each; and where it is what was guessed, another one, and so on.

    Each is chosen as without guessing: from the same logits, with the next number of the same generator.
    """
    going, place = list(answers), 0
    while going:
        rows = [answer.row + place for answer in going]
        picked = logits if rows == list(range(len(logits))) else logits[rows]
        tokens = _sample(picked, [answer.sequence.sampler for answer in going])
        likely = take_logprobs(picked, tokens, [answer.sequence.request.logprobs for answer in going])
        for each in zip(going, tokens, likely, strict=True):
            Answer.add(*each)
        going, place = [answer for answer in going if answer.was_right(place)], place + 1


def _sample(logits: torch.Tensor, states: Several[SamplerState]) -> list[int | MicrokernelError]:
    try:
        tokens = sample(logits, states).tolist()
    except (MicrokernelError, RuntimeError, ValueError, IndexError, OverflowError) as error:
        if len(states) == 1:
            return [from_exception(error, service="inference")]
        # One row's parameters spoilt the batch: each by itself, so that only that row ends.
        return [_sample(logits[row : row + 1], [state])[0] for row, state in enumerate(states)]
    broken = DataLoss(
        "the model's output holds no finite numbers",
        remedy="verify the model's files; a model that overflows in bfloat16 needs float32",
    )
    failures = [None if state.constraint is None else state.constraint.failure for state in states]
    return [
        (failure or broken) if token == NO_TOKEN else token for token, failure in zip(tokens, failures, strict=True)
    ]
