"""One answer as it is made (hot: once a token): tokens in from the engine's step, pieces of text out to one reader.

Lives on the loop. The reader takes all text that has gathered since it last looked; when more than `AHEAD` tokens wait
for it, the engine is asked to hold the sequence back until it has read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from microkernel.errors import Internal, MicrokernelError
from microkernel.policy import Claim
from services.inference.engine.output import Output
from services.inference.messages import TokenLogprob
from services.inference.text.detokenizer import IncrementalText
from services.inference.text.logprobs import LogprobsOfText
from services.inference.text.stops import StopMatcher

__all__ = ["Generation", "first_of"]

AHEAD = 64  # tokens that may wait for a slow reader


class Generation:
    """The state of one answer. `tokens` counts what was generated, stop token included."""

    def __init__(
        self,
        number: int,
        *,
        text: IncrementalText,
        stops: StopMatcher,
        prompt_tokens: int,
        began: float,
        logprobs: LogprobsOfText | None = None,
        keeps_ids: bool = False,
    ) -> None:
        """With `keeps_ids`, the ids of its tokens are given to its reader, too."""
        self.number = number
        self.claim = Claim()  # of its process
        self.prompt_tokens = prompt_tokens
        self.tokens = 0
        self.cached_tokens = 0
        self.began = began
        self.joined: float | None = None
        self.first_token: float | None = None
        self.device_seconds = 0.0
        self.finish_reason: str | None = None
        self.held_since: float | None = None
        self.paused = False
        self.charged = 0  # tokens that its owner was charged for
        self.hold: Callable[[Generation], None] | None = None
        self._text = text
        self._stops = stops
        self._logprobs = logprobs
        self._shown = 0  # characters that were read
        self._cut = False  # by a stop string
        self._pending: list[str] = []
        self._ids: list[int] | None = [] if keeps_ids else None  # that were not read yet
        self._unread = 0
        self._error: MicrokernelError | None = None
        self._wake: asyncio.Future[None] | None = None

    @property
    def unread(self) -> int:
        """Tokens that the reader has not taken."""
        return self._unread

    @property
    def computed(self) -> int:
        """Tokens that were computed for it: its answer, and of its prompt what was not cached, once that is known."""
        return self.tokens + (self.prompt_tokens - self.cached_tokens if self.tokens else 0)

    @property
    def ended(self) -> bool:
        """Whether no more tokens are wanted."""
        return self.finish_reason is not None or self._error is not None

    def push(self, output: Output, now: float) -> None:
        """Take what one step has given; sets `finish_reason` when it was the last."""
        if self.ended:
            return
        if output.error is not None:
            self.fail(output.error)
            return
        if self.first_token is None:
            self.first_token = now
        self.tokens += 1
        self.cached_tokens = output.cached
        self._unread += 1
        if output.finish_reason == "stop":
            self._finish("stop")
            return
        if self._ids is not None:
            self._ids.append(output.token)
        grown = self._text.push(output.token)
        if self._logprobs is not None and output.logprobs is not None:
            self._logprobs.push(output.token, output.logprobs, len(grown))
        text, stopped = self._stops.push(grown)
        self._pending.append(text)
        if stopped:
            self.finish_reason, self._cut = "stop", True
        elif output.finish_reason is not None:
            self._finish("stop" if output.finish_reason == "complete" else output.finish_reason)
        elif self._unread > AHEAD and any(self._pending):
            # Tokens without text (a stop string that may be coming) are nothing that a reader could take.
            self._hold(now)
        if text or self.ended:
            self._rouse()

    def fail(self, error: MicrokernelError) -> None:
        """End with an error, which the reader gets after the text that came before it."""
        if not self.ended:
            self._error = error
            self._rouse()

    async def read(self) -> str:
        """The text since the last read, waiting for some; empty only at the end. Raises what the answer ended with."""
        await first_of([self])
        return self.take()

    @property
    def ready(self) -> bool:
        """Whether there is something to take: text, or the end."""
        return self.ended or any(self._pending)

    def take(self) -> str:
        """The text since the last time; empty only at the end, or where it is not ready. Raises as `read`."""
        if self._error is not None and not any(self._pending):
            raise self._error
        text = "".join(self._pending)
        self._shown += len(text)
        self._pending.clear()
        self._unread = 0
        self._hold(None)
        return text

    def recall(self, tokens: Sequence[int]) -> None:
        """Have the text of an answer that was begun elsewhere, as what its reader has not taken yet."""
        for token in tokens:
            self.tokens += 1
            text, _ = self._stops.push(self._text.push(token))
            self._pending.append(text)

    def take_ids(self) -> list[int]:
        """The tokens since the last time, where their ids are kept."""
        if not self._ids:
            return []
        taken, self._ids = self._ids, []
        return taken

    def take_logprobs(self) -> list[TokenLogprob]:
        """Those of the text that was read, once each; of tokens without text too when the answer has ended."""
        if self._logprobs is None:
            return []
        whole = self.finish_reason is not None and not self._cut
        return self._logprobs.take(None if whole else self._shown)

    def _finish(self, reason: str) -> None:
        rest, stopped = self._stops.push(self._text.flush())
        self._pending += [rest, "" if stopped else self._stops.flush()]
        self.finish_reason, self._cut = "stop" if stopped else reason, stopped
        self._rouse()

    def _hold(self, since: float | None) -> None:
        if (since is None) is not (self.held_since is None) and self.hold is not None:
            self.held_since = since
            self.hold(self)

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


async def first_of(generations: Sequence[Generation]) -> None:
    """Wait until one of them is ready, each of which has this one reader."""
    if any(generation.ready for generation in generations):
        return
    if any(generation._wake is not None for generation in generations):  # noqa: SLF001 - of this module
        raise Internal("a generation has one reader")
    wake = asyncio.get_running_loop().create_future()
    for generation in generations:
        generation._wake = wake  # noqa: SLF001
    try:
        await wake
    finally:
        for generation in generations:
            generation._wake = None  # noqa: SLF001
