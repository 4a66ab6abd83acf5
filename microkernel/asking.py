"""What is asked of a model, and what it says of each token: the words that services and drivers share.

A device may give whole answers by itself (`microkernel.model_server`). What a client asks of inference, and what
inference asks of such a device, are the same words, and so they are neither's.
"""

from __future__ import annotations

from typing import Any

from microkernel.message import Message

__all__ = ["ChatMessage", "Grammar", "OutputParams", "SamplingParams", "TokenLogprob"]


class ChatMessage(Message, kw_only=True):
    """One turn. `content` is text, or parts as OpenAI's clients send them (`[{"type": "text", "text": …}]`)."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class SamplingParams(Message, kw_only=True):
    """How the next token is chosen; None takes the model's own default, and where it has none, that of the service.

    `temperature` 0 is greedy. `top_k` 0 keeps all. Penalties as in OpenAI's API (presence, frequency: over the tokens
    generated so far) and CTRL, https://arxiv.org/abs/1909.05858 (repetition: over prompt and answer). `min_p` as in
    https://arxiv.org/abs/2407.01082. Two requests with the same seed, prompt and params give the same text.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None


class Grammar(Message, kw_only=True):
    """What the text of an answer must fit; exactly one of these.

    `regex` has the syntax of Rust's expressions and matches all of the text. `lark` is a context-free grammar in Lark's
    syntax or in GBNF.
    """

    json_schema: dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    lark: str | None = None


class OutputParams(SamplingParams, kw_only=True):
    """What an answer must be, and what is told of it beside its text.

    `logit_bias` is added to the logits of tokens, by their ids. `stop_token_ids` end the answer as the model's own end
    tokens do, neither before `min_tokens` tokens; with `ignore_eos` those do not. Where a `grammar` lets only the end
    follow, it ends. `logprobs` asks how likely each token was, and that many of the likeliest ones, up to 20, and
    `return_token_ids` for the ids of the tokens themselves.

    `begun` are the first tokens of an answer that was begun elsewhere: it goes on behind them, as it would have there.
    """

    grammar: Grammar | None = None
    logit_bias: dict[str, float] = {}
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: list[int] = []
    logprobs: int | None = None
    return_token_ids: bool = False
    begun: list[int] = []


class TokenLogprob(Message, kw_only=True):
    """How likely a token was: the natural logarithm of its chance, -9999 for none, before anything changed the chances.

    `text` is what `bytes` are as UTF-8; they may end inside a character. `top` are the likeliest tokens at its place.
    `token` is -1 where somebody else's server made it and does not tell the number.
    """

    token: int
    text: str
    bytes: list[int]
    logprob: float
    top: list[TokenLogprob] = []
