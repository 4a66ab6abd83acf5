"""One answer that another device makes (hot: once a piece): pieces in as they come, taken out by one reader.

Lives on the loop, as `Generation` does for answers that are made here. What is waiting for the reader is limited, and
whoever brings more waits until it has read: so a slow reader slows the device down.
"""

from __future__ import annotations

import asyncio

from microkernel.asking import TokenLogprob
from microkernel.errors import MicrokernelError
from microkernel.model_server import Generated, Spent
from services.inference.messages import Piece

__all__ = ["Relay"]

AHEAD = 64  # pieces that may wait for a slow reader
MOST_CHARACTERS = 1 << 18  # of their text


class Relay:
    """The state of one answer. `tokens` counts what is known to be made so far. Times are of the caller's clock."""

    def __init__(self, index: int, news: asyncio.Event, began: float) -> None:
        """`news` is set when there is something to take."""
        self.index = index
        self.began = began
        self.device = ""
        self.admitted: float | None = None  # when the device took the request
        self.first_token: float | None = None
        self.tokens = 0
        self.spent: Spent | None = None
        self.finish_reason: str | None = None
        self.held_since: float | None = None
        self.charged = 0  # tokens that its owner was charged for
        self._news = news
        self._text: list[str] = []
        self._calls: list[dict[str, object]] = []
        self._logprobs: list[TokenLogprob] = []
        self._characters = 0
        self._waiting = 0
        self._error: MicrokernelError | None = None
        self._room = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether nothing more is wanted."""
        return self.finish_reason is not None or self._error is not None

    @property
    def ready(self) -> bool:
        """Whether there is something to take: text, or the end."""
        return self.ended or bool(self._text or self._calls or self._logprobs)

    @property
    def computed(self) -> int:
        """Tokens that were computed for it, as far as is known: its answer, and of its prompt what was not cached."""
        if self.spent is None:
            return self.tokens
        return self.spent.completion_tokens + self.spent.prompt_tokens - self.spent.cached_tokens

    @property
    def prompt_tokens(self) -> int:
        """0 until the device tells it."""
        return 0 if self.spent is None else self.spent.prompt_tokens

    async def push(self, piece: Generated, now: float) -> None:
        """Take what the device has said, and wait until the reader has room for more."""
        if self.ended:
            return
        self.device = piece.device
        if self.admitted is None:
            self.admitted = now
        self.tokens += piece.tokens
        if piece.tokens and self.first_token is None:
            self.first_token = now
        if piece.text:
            self._text.append(piece.text)
        self._calls += piece.tool_calls
        self._logprobs += piece.logprobs
        self._characters += len(piece.text)
        self._waiting += 1
        if piece.finish_reason is not None:
            self.finish_reason, self.spent = piece.finish_reason, piece.spent
            if piece.spent is not None:
                self.tokens = piece.spent.completion_tokens
        self._news.set()
        while self._full and not self.ended:
            self.held_since = self.held_since or now
            self._room.clear()
            await self._room.wait()

    def fail(self, error: MicrokernelError) -> None:
        """End with an error, which the reader gets after the text that came before it."""
        if not self.ended:
            self._error = error
            self._room.set()
            self._news.set()

    def take(self) -> Piece:
        """What came since the last time, empty where nothing did. Raises what the answer ended with."""
        if self._error is not None and not (self._text or self._calls):
            raise self._error
        piece = Piece(text="".join(self._text), tool_calls=self._calls, logprobs=self._logprobs, index=self.index)
        self._text, self._calls, self._logprobs, self._characters, self._waiting = [], [], [], 0, 0
        self.held_since = None
        self._room.set()
        if self._error is not None:
            self._news.set()
        return piece

    @property
    def _full(self) -> bool:
        return self._waiting >= AHEAD or self._characters >= MOST_CHARACTERS
