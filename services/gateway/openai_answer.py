"""What OpenAI's clients are told: completions, chunks of a stream, models. Hot: `ChunkWriter` once a piece.

https://platform.openai.com/docs/api-reference/chat/object and /streaming; the event stream is that of the HTML
standard, https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from services.gateway.openai_tools import whole_calls
from services.inference.messages import LoadedModel, Piece, TokenLogprob, Usage

__all__ = [
    "ANSWERS",
    "DONE",
    "KEEP_ALIVE",
    "ChunkWriter",
    "completion_json",
    "event",
    "model_json",
    "models_json",
    "usage_of",
]

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

ANSWERS = ("ready", "stored")  # a stored model is loaded when it is asked

_encode = msgspec.json.Encoder().encode


class ChunkWriter:
    """Turns the pieces of one answer, or of several to one prompt, into the events of its stream.

    What is the same in every chunk is encoded once: a chunk costs its text and two joins.
    """

    def __init__(
        self,
        *,
        answer_id: str,
        model: str,
        created: int,
        include_usage: bool,
        answers: int = 1,
        tier: str | None = None,
    ) -> None:
        told = {"id": answer_id, "object": "chat.completion.chunk", "created": created, "model": model}
        head = _encode(told | ({} if tier is None else {"service_tier": tier}))
        self._head = b"data: " + head[:-1]
        self._before = [self._head + b',"choices":[{"index":%d,"delta":' % index for index in range(answers)]
        self._after = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._include_usage = include_usage

    def opening(self) -> bytes:
        """The first chunk of each: who speaks."""
        said = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(self._chunk(index, said, None) for index in range(len(self._before)))

    def piece(self, piece: Piece) -> bytes:
        """The chunk of one piece; nothing for one that says nothing."""
        if not piece.text and not piece.logprobs and piece.finish_reason is None and not piece.tool_calls:
            return b""
        logprobs = _encode(_logprobs(piece.logprobs)) if piece.logprobs else b"null"
        delta: dict[str, Any] = {"content": piece.text} if piece.text else {}
        if piece.tool_calls:
            delta["tool_calls"] = piece.tool_calls
        return self._chunk(piece.index, delta, piece.finish_reason, logprobs)

    def closing(self, usage: Usage | None) -> bytes:
        """What follows the last piece."""
        if not self._include_usage or usage is None:
            return DONE
        return self._head + b',"choices":[],"usage":' + _encode(_usage(usage)) + b"}\n\n" + DONE

    def _chunk(self, index: int, delta: dict[str, Any], finish_reason: str | None, logprobs: bytes = b"null") -> bytes:
        reason = b"null" if finish_reason is None else _encode(finish_reason)
        middle = (b',"logprobs":', logprobs, b',"finish_reason":', reason, b"}]")
        return b"".join((self._before[index], _encode(delta), *middle, self._after))


def event(data: bytes) -> bytes:
    """`data`, which is JSON of one line, as an event of the stream."""
    return b"data: " + data + b"\n\n"


def completion_json(
    *, answer_id: str, model: str, created: int, pieces: Iterable[Piece], tier: str | None = None
) -> bytes:
    """A whole answer, or several to one prompt."""
    said: dict[int, list[Piece]] = {}
    for piece in pieces:
        said.setdefault(piece.index, []).append(piece)
    usage = usage_of(piece for each in said.values() for piece in each)
    return _encode(
        {
            "id": answer_id,
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [_choice(index, said[index]) for index in sorted(said)],
            "usage": None if usage is None else _usage(usage),
        }
        | ({} if tier is None else {"service_tier": tier})
    )


def usage_of(pieces: Iterable[Piece]) -> Usage | None:
    """What all answers cost together, their prompt once; None where none of them says."""
    told = [piece.usage for piece in pieces if piece.usage is not None]
    if not told:
        return None
    return msgspec.structs.replace(
        told[0],
        completion_tokens=sum(usage.completion_tokens for usage in told),
        cached_tokens=min(usage.cached_tokens for usage in told),
    )


def _choice(index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
    told = [one for piece in pieces for one in piece.logprobs]
    message: dict[str, Any] = {"role": "assistant", "content": "".join(piece.text for piece in pieces), "refusal": None}
    if calls := whole_calls(pieces):
        message |= {"content": message["content"] or None, "tool_calls": calls}
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(told) if told else None,
        "finish_reason": pieces[-1].finish_reason,
    }


def models_json(models: Sequence[LoadedModel]) -> bytes:
    """The list of models that answer, the default one first, then those that answer at once."""
    listed = [model for model in models if model.state in ANSWERS]
    listed.sort(key=lambda model: (not model.default, ANSWERS.index(model.state), model.name))
    return _encode({"object": "list", "data": [_model(model) for model in listed]})


def model_json(model: LoadedModel) -> bytes:
    """One model."""
    return _encode(_model(model))


def _model(model: LoadedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "microkernel",
        # What OpenAI's answer does not have; `parent`, of an adapter, and `max_model_len` are vLLM's names, which
        # evaluation tools read.
        "parent": model.parent or None,
        "default": model.default,
        "state": model.state,
        "max_model_len": model.context_length,
        "architecture": model.architecture,
        "quantization": model.quantization,
        "parameters": model.parameters,
        "device": model.device,
        "embeds": model.embeds,
    }


def _logprobs(told: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {
        "content": [{**_logprob(one), "top_logprobs": [_logprob(other) for other in one.top]} for one in told],
        "refusal": None,
    }


def _logprob(one: TokenLogprob) -> dict[str, Any]:
    return {"token": one.text, "logprob": one.logprob, "bytes": one.bytes}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
