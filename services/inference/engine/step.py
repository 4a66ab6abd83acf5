"""One step: who takes part in it, what the model makes of their tokens, and what each of them gets; hot.

The decoder computes all of them in one pass, and one choice gives all their tokens. A step that fails ends those who
took part in it and nobody else.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Several

import msgspec

from microkernel.errors import DataLoss, MicrokernelError, copy_of
from microkernel.policy import Claim
from services.inference.cache.cache import Cache
from services.inference.engine.batch import Batch, Share
from services.inference.engine.choice import Answer, choose
from services.inference.engine.contexts import Contexts
from services.inference.engine.forward import Decoder, Part, Storage
from services.inference.engine.output import Output, broken
from services.inference.engine.pace import Pace
from services.inference.engine.proposers import Proposer
from services.inference.engine.sampler import NO_TOKEN

__all__ = ["Step"]

GUESSED_ROWS = 16  # tokens of a step that decodes, guessed ones included: more cost more than they save
PATIENCE = 0.005  # seconds that a step waits for the disk where there is nothing to compute


class Step:
    """The steps of one batch; every method runs on the decoder's device thread."""

    def __init__(
        self,
        decoder: Decoder,
        storage: Storage,
        cache: Cache,
        contexts: Contexts,
        batch: Batch,
        pace: Pace,
        proposer: Proposer | None,
    ) -> None:
        """The parts that a step needs; what `proposer` guesses is computed beforehand."""
        self._decoder = decoder
        self._storage = storage
        self._cache = cache
        self._contexts = contexts
        self._batch = batch
        self._pace = pace
        self._proposer = proposer
        self.guessed = self.guessed_right = 0  # tokens so far
        self.claims: dict[Claim, float] = {}  # of the last step, by how many tokens each had

    def run(self) -> list[Output]:
        """A token for every sequence that decodes, then prompts as far as the budget goes."""
        self.claims = {}
        self._contexts.take(self._batch.places.running, wait=0.0)
        shares = self._batch.plan()
        outputs = [broken(sequence.request.id, error) for sequence, error in self._batch.refuse()]
        if not shares:
            self._contexts.take(self._batch.places.running, wait=PATIENCE)
            return outputs
        self._guess(shares)
        parts = [self._part(share) for share in shares]
        began = time.perf_counter()
        try:
            logits = self._decoder.forward(self._storage, parts)
        except (MicrokernelError, RuntimeError, MemoryError) as error:  # torch's out-of-memory is a RuntimeError
            return outputs + self._fail(error)
        answers = self._answering(shares, parts)
        choose(logits, answers)
        outputs += [output for answer in answers for output in self._take(answer)]
        seconds = time.perf_counter() - began
        if not any(share.guessed for share in shares):  # they neither decode nor are they read
            self._pace.note(*_rows(parts), seconds)
        for share, part in zip(shares, parts, strict=True):
            claim = share.sequence.claim
            self.claims[claim] = self.claims.get(claim, 0.0) + len(part.tokens)
        self._batch.charge(self.claims, seconds)
        return outputs

    def _guess(self, shares: Several[Share]) -> None:
        """Add to those that decode what may follow, to be computed with them: right guesses save a step each."""
        if self._proposer is None:
            return
        spare = GUESSED_ROWS - len(shares)
        asked: list[tuple[Share, int]] = []
        for share in shares:
            sequence = share.sequence
            if spare <= 0 or sequence.missing > 1:
                return  # prompts are being read: they stand behind those who decode
            most = min(sequence.guess.wanted(), sequence.limit - len(sequence.tokens) - 1, spare)
            if most > 0:
                asked.append((share, most))
                spare -= most
        guesses = self._proposer.propose([(share.sequence, most) for share, most in asked])
        for (share, _), guess in zip(asked, guesses, strict=True):
            if guess and self._batch.reserve(share.sequence, 1 + len(guess)):
                share.guessed = guess

    def _part(self, share: Share) -> Part:
        sequence = share.sequence
        assert sequence.table is not None
        start = sequence.table.length
        if sequence.found < 0:
            sequence.found = min(start, len(sequence.request.prompt))
        last = start + share.count == len(sequence.tokens)
        return Part(
            sequence.tokens[start : start + share.count] + share.guessed,
            start,
            sequence.view(self._storage),
            wanted=1 + len(share.guessed) if last else 0,
            adapter=sequence.request.adapter,
        )

    def _answering(self, shares: Several[Share], parts: Several[Part]) -> list[Answer]:
        """Those who get tokens from this step, with their rows of the logits; what was computed is in their tables."""
        answers: list[Answer] = []
        row = 0
        for share, part in zip(shares, parts, strict=True):
            sequence = share.sequence
            assert sequence.table is not None
            self._cache.advance(sequence.table, part.tokens[: share.count])
            if not part.wanted:
                continue
            answers.append(Answer(sequence, row, share.guessed))
            if sequence.followers:
                answers += [Answer(follower, row) for follower in self._batch.fork(sequence)]
            if share.count > 1:
                self._contexts.keep(sequence)  # a node that is killed has the prompt at least
            row += part.wanted
        return answers

    def _take(self, answer: Answer) -> list[Output]:
        sequence = answer.sequence
        request = sequence.request
        if answer.guessed and answer.tokens:
            right = len(answer.tokens) - 1
            sequence.guess.note(len(answer.guessed), right)
            assert sequence.table is not None
            self._cache.advance(sequence.table, answer.guessed[:right])
            self.guessed += len(answer.guessed)
            self.guessed_right += right
        cached = max(0, sequence.found)
        outputs = [
            Output(request.id, token, cached=cached, logprobs=likely)
            for token, likely in zip(answer.tokens, answer.logprobs, strict=True)
        ]
        if outputs:
            reason = sequence.ended_by(answer.tokens[-1])
            outputs[-1] = msgspec.structs.replace(outputs[-1], finish_reason=reason)
            if reason is not None and answer.error is None:
                self._batch.leave(sequence)
        if answer.error is not None:
            self._batch.leave(sequence, broken=isinstance(answer.error, DataLoss))
            outputs.append(Output(request.id, NO_TOKEN, error=answer.error))
        return outputs

    def _fail(self, error: Exception) -> list[Output]:
        """End everything that runs with `error`, from a step that could not be done; what waits goes on."""
        outputs = [
            broken(sequence.request.id, copy_of(error, type(error)) if isinstance(error, MicrokernelError) else error)
            for sequence in self._batch.places.running
        ]
        for sequence in tuple(self._batch.places.running):
            self._batch.leave(sequence, broken=True)
        return outputs


def _rows(parts: Several[Part]) -> tuple[int, int]:
    """How many tokens of a step without guesses were decoded, and how many were of prompts."""
    decoding = sum(len(part.tokens) == part.wanted for part in parts)
    return decoding, sum(len(part.tokens) for part in parts) - decoding
