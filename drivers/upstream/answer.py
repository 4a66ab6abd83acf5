"""One answer out of the chunks of its stream (hot: once a chunk), without a loop.

https://platform.openai.com/docs/api-reference/chat-streaming and /completions. What a server sends beside, such as the
thoughts of models that show them apart from their answer, is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from drivers.upstream.errors_http import error_in_stream
from drivers.upstream.events import BadAnswer
from microkernel.asking import TokenLogprob
from microkernel.errors import Unimplemented
from microkernel.model_server import Generated, Spent

__all__ = ["Answer"]

DONE = b"[DONE]"
REASON = re.compile(r"[a-z_]{1,32}")
BROKEN = frozenset({"abort", "error"})  # what engines say that gave the request up
LEAST = -9999.0  # what OpenAI says for a chance of nothing; JSON has no -inf
MOST_CALLS = 128  # parts of calls in one chunk


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Any = None


class _PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    object: str | None = None


class _Likely(msgspec.Struct, frozen=True):
    """A token as chats tell it."""

    token: str
    logprob: float | None = None
    bytes: list[int] | None = None
    top_logprobs: list[_Likely] | None = None


class _LikelyOfChat(msgspec.Struct, frozen=True):
    content: list[_Likely] | None = None


class _LikelyOfText(msgspec.Struct, frozen=True):
    """Tokens as completions tell them: lists side by side."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None


_chunk_decoder = msgspec.json.Decoder(_Chunk)


class Answer:
    """What has come of one answer. `wants_logprobs`: it was asked for, and an answer without is refused."""

    def __init__(self, *, wants_logprobs: bool = False) -> None:
        self.done = False  # the server has said that nothing follows
        self._wants_logprobs = wants_logprobs
        self._reason: str | None = None
        self._spent: Spent | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing but the count of tokens may follow."""
        return self._reason is not None

    def push(self, data: bytes) -> Generated | None:
        """What one event says; None where that is nothing. Raises `BadAnswer`, and the error that a server tells of."""
        if data.strip() == DONE:
            self.done = True
            return None
        try:
            chunk = _chunk_decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadAnswer(f"an event is not what the API has: {error}") from error
        if chunk.error is not None or chunk.object == "error":
            raise error_in_stream(data)
        if chunk.usage is not None:
            self._count(chunk.usage)
        for choice in chunk.choices or ():
            if choice.index == 0:  # one answer was asked for
                return self._piece(choice)
        return None

    def last(self) -> Generated:
        """The end of the answer. Raises `BadAnswer` where the server has given no reason for it."""
        if self._reason is None:
            raise BadAnswer("the answer broke off without a reason")
        return Generated(finish_reason=self._reason, spent=self._spent)

    def _piece(self, choice: _Choice) -> Generated | None:
        delta = choice.delta or _Delta()
        text = (delta.content if choice.text is None else choice.text) or ""
        calls = delta.tool_calls or []
        if len(calls) > MOST_CALLS:
            raise BadAnswer(f"a chunk has {len(calls)} tool calls, at most {MOST_CALLS}")
        if choice.finish_reason:
            self._finish(choice.finish_reason)
        likely = [] if not self._wants_logprobs else _logprobs(choice.logprobs, of_text=choice.text is not None)
        if self._wants_logprobs and text and not likely:
            raise Unimplemented("it tells no logprobs", field="logprobs")
        thought = delta.reasoning_content or delta.reasoning
        if not (text or calls or likely or thought):
            return None
        return Generated(text=text, tool_calls=calls, logprobs=likely, tokens=max(1, len(likely)))

    def _finish(self, reason: str) -> None:
        if reason in BROKEN:
            raise BadAnswer(f"the server gave the answer up ({reason})")
        if not REASON.fullmatch(reason):
            raise BadAnswer(f"the answer ended with the reason {reason[:40]!r}")
        self._reason = reason

    def _count(self, usage: _Usage) -> None:
        if usage.prompt_tokens is None:
            return
        cached = usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens
        self._spent = Spent(
            prompt_tokens=max(0, usage.prompt_tokens),
            completion_tokens=max(0, usage.completion_tokens or 0),
            cached_tokens=max(0, cached or 0),
        )


def _logprobs(told: Any, *, of_text: bool) -> list[TokenLogprob]:
    """Those of a chunk, whichever of the two shapes they have."""
    if told is None:
        return []
    try:
        if not of_text or (isinstance(told, dict) and "content" in told):
            content = msgspec.convert(told, _LikelyOfChat).content or []
            return [_of_chat(one) for one in content]
        return _of_text(msgspec.convert(told, _LikelyOfText))
    except msgspec.ValidationError as error:
        raise BadAnswer(f"logprobs are not what the API has: {error}") from error


def _of_chat(one: _Likely) -> TokenLogprob:
    top = [_token(other.token, other.logprob, other.bytes) for other in one.top_logprobs or ()]
    return msgspec.structs.replace(_token(one.token, one.logprob, one.bytes), top=top)


def _of_text(told: _LikelyOfText) -> list[TokenLogprob]:
    tops: Sequence[dict[str, float] | None] = told.top_logprobs or [None] * len(told.tokens)
    return [
        msgspec.structs.replace(
            _token(text, logprob, None), top=[_token(*other, None) for other in (top or {}).items()]
        )
        for text, logprob, top in zip(told.tokens, told.token_logprobs, tops, strict=False)
    ]


def _token(text: str, logprob: float | None, as_bytes: list[int] | None) -> TokenLogprob:
    encoded = list(text.encode("utf-8", "surrogatepass")) if as_bytes is None else as_bytes
    return TokenLogprob(token=-1, text=text, bytes=encoded, logprob=LEAST if logprob is None else logprob)
