"""Hot, once a token of those who ask: keeps log-probabilities beside the text until their token's text is shown."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from formats.text.tokenizer import Tokenizer
from services.inference.engine.logprobs import Logprobs
from services.inference.messages import TokenLogprob

__all__ = ["LogprobsOfText"]


class LogprobsOfText:
    """Those of one answer. Where its text is cut before a stop string, they are cut with it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()  # where the token's text begins
        self._characters = 0

    def push(self, token: int, logprobs: Logprobs, characters: int) -> None:
        """Take those of `token`, with which the text grew by so many characters: none if it is not whole."""
        top = [self._told(other, value) for other, value in logprobs.top]
        self._waiting.append((self._characters, self._told(token, logprobs.logprob, top)))
        self._characters += characters

    def take(self, shown: int | None) -> list[TokenLogprob]:
        """Those of the first `shown` characters that were not taken yet; None: of all."""
        taken = []
        while self._waiting and (shown is None or self._waiting[0][0] < shown):
            taken.append(self._waiting.popleft()[1])
        return taken

    def _told(self, token: int, logprob: float, top: Sequence[TokenLogprob] = ()) -> TokenLogprob:
        raw = self._tokenizer.token_bytes(token)
        text = raw.decode("utf-8", "replace")
        return TokenLogprob(token=token, text=text, bytes=list(raw), logprob=logprob, top=list(top))
