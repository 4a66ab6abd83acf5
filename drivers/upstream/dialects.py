"""What servers know beside OpenAI's own fields, and what they call it: one entry for each kind of server.

Read from their sources and manuals: vLLM's `vllm/entrypoints/openai`, SGLang's `srt/entrypoints/openai/protocol.py`,
llama.cpp's `tools/server`, llama-cpp-python's `llama_cpp/server/types.py`, Ollama's `openai/openai.go`, our gateway.
Most of them pass over what they do not know, so a field is only sent where it is known to be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from microkernel.asking import Grammar

__all__ = ["DIALECTS", "Dialect", "dialect_of"]

Grammars = Callable[[Grammar], dict[str, Any] | None]
"""The fields that hold an answer to a grammar; None where the server knows nothing of the kind."""


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of server.

    `owner` is what it says in its list of models. `fields` are our names of what it takes beside what all do, each with
    its own. Where `neutral`, it has not even what these fields would change, so one that changes nothing is left out.
    With `short_texts` a text ends after 16 tokens where `max_tokens` is not said; with `null_max_tokens`, "null" is the
    word for no limit. One that answers `one_at_a_time` gives an answer up when it is asked anything else.
    """

    name: str
    title: str
    owner: str | None = None
    max_tokens: str = "max_tokens"
    fields: Mapping[str, str] = {}
    neutral: bool = False
    grammar: Grammars
    texts: bool = True  # it completes texts
    token_prompts: bool = False
    short_texts: bool = False
    null_max_tokens: bool = False
    one_at_a_time: bool = False
    short_seeds: bool = False  # 32 bits, and not 64
    all_tokens: int = 0  # what says that `top_k` keeps all


def dialect_of(owners: Iterable[str]) -> Dialect:
    """The dialect of a server whose models are owned by these; the least that all have, where nothing tells."""
    said = set(owners)
    for dialect in DIALECTS.values():
        if said == {dialect.owner}:
            return dialect
    return DIALECTS["openai"]


def _schema(grammar: Grammar) -> dict[str, Any] | None:
    """As OpenAI has it, https://platform.openai.com/docs/guides/structured-outputs."""
    schema = grammar.json_schema
    if schema is None or schema is False:
        return None
    if schema in (True, {"type": "object"}):
        return {"response_format": {"type": "json_object"}}
    named = {"name": "answer", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _structured(grammar: Grammar) -> dict[str, Any] | None:
    """vLLM's words, which our gateway takes too."""
    if grammar.regex is not None:
        return {"structured_outputs": {"regex": grammar.regex}}
    if grammar.choice is not None:
        return {"structured_outputs": {"choice": grammar.choice}}
    if grammar.lark is not None:
        return {"structured_outputs": {"grammar": grammar.lark}}
    if grammar.json_schema is not None:
        return {"structured_outputs": {"json": grammar.json_schema}}
    return None


def _sglang(grammar: Grammar) -> dict[str, Any] | None:
    if grammar.regex is not None:
        return {"regex": grammar.regex}
    if grammar.choice is not None:
        return {"regex": "|".join(f"(?:{re.escape(choice)})" for choice in grammar.choice)}
    if grammar.lark is not None:
        return {"ebnf": grammar.lark} if _is_gbnf(grammar.lark) else None
    return _schema(grammar)


def _gbnf(grammar: Grammar) -> dict[str, Any] | None:
    """llama.cpp's grammars, https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md."""
    if grammar.choice is not None:
        words = " | ".join(f'"{_quoted(choice)}"' for choice in grammar.choice)
        return {"grammar": f"root ::= {words}"}
    if grammar.lark is not None:
        return {"grammar": grammar.lark} if _is_gbnf(grammar.lark) else None
    return _schema(grammar)


def _gbnf_of_python(grammar: Grammar) -> dict[str, Any] | None:
    schema = grammar.json_schema
    if isinstance(schema, dict):
        return {"response_format": {"type": "json_object", "schema": schema}}
    return _gbnf(grammar)


def _is_gbnf(grammar: str) -> bool:
    return "::=" in grammar


def _quoted(text: str) -> str:
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return "".join(escapes.get(character, character) for character in text)


_BIAS = {"logit_bias": "logit_bias"}
_VLLM = _BIAS | {
    name: name for name in ("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids")
}
_LLAMA = _BIAS | {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repeat_penalty"}

DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect(
            name="openai",
            title="a server with OpenAI's API",
            fields=_BIAS,
            neutral=True,
            grammar=_schema,
            token_prompts=True,
            short_texts=True,
        ),
        Dialect(
            name="vllm",
            title="vLLM",
            owner="vllm",
            fields=_VLLM,
            grammar=_structured,
            token_prompts=True,
            short_texts=True,
            null_max_tokens=True,
        ),
        Dialect(
            name="sglang",
            title="SGLang",
            owner="sglang",
            fields=_VLLM,
            grammar=_sglang,
            token_prompts=True,
            short_texts=True,
            all_tokens=-1,
        ),
        Dialect(
            name="llama.cpp",
            title="llama.cpp",
            owner="llamacpp",
            fields=_LLAMA | {"ignore_eos": "ignore_eos"},
            grammar=_gbnf,
            token_prompts=True,
            short_seeds=True,
        ),
        Dialect(
            name="llama-cpp-python",
            title="llama-cpp-python",
            owner="me",
            fields=_LLAMA | {"min_tokens": "min_tokens"},
            grammar=_gbnf_of_python,
            short_texts=True,
            null_max_tokens=True,
            one_at_a_time=True,
            short_seeds=True,
        ),
        Dialect(name="ollama", title="Ollama", owner="library", grammar=_schema, short_seeds=True),
        Dialect(
            name="microkernel", title="a node", owner="microkernel", fields=_VLLM, grammar=_structured, texts=False
        ),
    )
}
