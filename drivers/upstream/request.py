"""The body of a request in a server's dialect. Plain functions: what cannot be said there is refused, not dropped.

https://platform.openai.com/docs/api-reference/chat/create and /completions/create.
"""

from __future__ import annotations

from typing import Any

import msgspec

from drivers.upstream.dialects import Dialect
from microkernel.errors import Invalid, Unimplemented
from microkernel.model_server import Generate

__all__ = ["body_of", "path_of"]

EVERYWHERE = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed")
# What is neither asked for nor changes anything.
NOTHING: dict[str, tuple[Any, ...]] = {
    "top_k": (None,),
    "min_p": (None,),
    "repetition_penalty": (None,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "logit_bias": ({},),
}
SHORT_SEEDS = 1 << 31
NEUTRAL: dict[str, Any] = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


def path_of(ask: Generate) -> str:
    """Below the server's URL."""
    return "/completions" if ask.messages is None else "/chat/completions"


def body_of(ask: Generate, dialect: Dialect) -> bytes:
    """The JSON of a request. Raises `Unimplemented` and `Invalid` that name the field."""
    body: dict[str, Any] = {"model": ask.model, "stream": True, "stream_options": {"include_usage": True}}
    body |= _text(ask, dialect) if ask.messages is None else _chat(ask)
    if ask.max_tokens is not None:
        body[dialect.max_tokens] = ask.max_tokens
    body |= {name: getattr(ask, name) for name in EVERYWHERE if getattr(ask, name) is not None}
    if ask.seed is not None and dialect.short_seeds:
        body["seed"] = ask.seed % SHORT_SEEDS
    if ask.stop:
        body["stop"] = ask.stop
    body |= _fields(ask, dialect)
    if ask.grammar is not None:
        held = dialect.grammar(ask.grammar)
        if held is None:
            raise _unknown(dialect, "such a grammar", "grammar")
        body |= held
    return msgspec.json.encode(body)


def _chat(ask: Generate) -> dict[str, Any]:
    messages = [
        {
            name: value
            for name, value in msgspec.structs.asdict(message).items()
            if value is not None or name == "content"
        }
        for message in ask.messages or ()
    ]
    said: dict[str, Any] = {"messages": messages}
    if ask.tools:
        said["tools"] = ask.tools
    if ask.tool_choice is not None:
        said["tool_choice"] = ask.tool_choice
    if ask.logprobs is not None:
        said |= {"logprobs": True} | ({"top_logprobs": ask.logprobs} if ask.logprobs else {})
    return said


def _text(ask: Generate, dialect: Dialect) -> dict[str, Any]:
    if not dialect.texts:
        raise Unimplemented(f"{dialect.title} takes chats only over HTTP, and completes no texts", field="prompt")
    if ask.tools:
        raise Unimplemented("tools are for chats", field="tools")
    if ask.prompt is None:
        raise Invalid("neither messages nor a prompt was given", field="prompt")
    if not isinstance(ask.prompt, str) and not dialect.token_prompts:
        raise _unknown(dialect, "prompts of tokens", "prompt")
    said: dict[str, Any] = {"prompt": ask.prompt}
    if ask.max_tokens is None and dialect.short_texts:
        if not dialect.null_max_tokens:
            raise Invalid(
                f"{dialect.title} ends a text after 16 tokens where max_tokens is not given", field="max_tokens"
            )
        said[dialect.max_tokens] = None
    if ask.logprobs is not None:
        said["logprobs"] = ask.logprobs
    return said


def _fields(ask: Generate, dialect: Dialect) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name, nothing in NOTHING.items():
        value = getattr(ask, name)
        if value in nothing:
            continue
        theirs = dialect.fields.get(name)
        if theirs is not None:
            said[theirs] = dialect.all_tokens if name == "top_k" and value == 0 else value
        elif not (dialect.neutral and NEUTRAL.get(name) == value):
            raise _unknown(dialect, f"'{name}'", name)
    return said


def _unknown(dialect: Dialect, what: str, field: str) -> Unimplemented:
    return Unimplemented(
        f"{dialect.title} does not know {what}",
        field=field,
        remedy="where it does, say so: `dialect` of the server in the configuration",
    )
