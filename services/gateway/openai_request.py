"""What OpenAI's clients ask: the body of a chat request, checked, and turned into a `Chat`.

https://platform.openai.com/docs/api-reference/chat/create, and vLLM's sampling extras. A field that we do not know is
ignored. A field that we know, do not support, and that would change the meaning of the answer is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from microkernel.errors import Invalid, Unimplemented
from microkernel.message import fault_of
from microkernel.policy import ProcessClass
from services.gateway.openai_grammar import (
    GRAMMAR_FIELDS,
    Demand,
    ResponseFormat,
    Schema,
    StructuredOutputs,
    demand_of,
)
from services.gateway.openai_tools import NamedTool, Tool, ToolCall, check_calls, check_tools
from services.inference.messages import MOST_ANSWERS, Chat, ChatMessage

__all__ = ["ChatRequest", "parse_chat"]

MAX_MESSAGES = 4096
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_NAME = 512
MAX_LOGPROBS = 20
LARGEST = 2**31 - 1
ROLES = ("system", "developer", "user", "assistant", "tool")

# How urgent each of OpenAI's tiers is. There is nothing more urgent to be had than for somebody who looks at a screen.
TIERS = {
    "auto": ProcessClass.INTERACTIVE,
    "default": ProcessClass.INTERACTIVE,
    "priority": ProcessClass.INTERACTIVE,
    "scale": ProcessClass.INTERACTIVE,
    "flex": ProcessClass.BATCH,
}


class StreamOptions(msgspec.Struct, frozen=True):
    """How a stream is sent."""

    include_usage: bool | None = None


class ContentPart(msgspec.Struct, frozen=True, gc=False):
    """A part of a turn; what else a part of another type has is not built, nor is a list where a text belongs."""

    type: str | float | bool | None = None
    text: str | float | bool | None = None


class RequestMessage(msgspec.Struct, frozen=True):
    """One turn as a client sends it."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `POST /v1/chat/completions`, without the fields that ask for nothing (see `_REFUSED`)."""

    messages: list[RequestMessage]
    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    user: str | None = None
    service_tier: str | None = None
    priority: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    tools: list[Tool] | None = None
    tool_choice: str | NamedTool | None = None
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    @property
    def demand(self) -> Demand | None:
        """What the answer must fit. Raises `Invalid` that names the field."""
        return demand_of(self)

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with what it cost."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def tier(self) -> str | None:
        """The tier that the answer is given in, for who has asked for one."""
        return self.service_tier if self.service_tier in {None, "flex"} else "default"

    def field_of(self, field: str | None) -> str | None:
        """The client's name of a field of `Chat` that an error names."""
        demand = self.demand
        if field == "grammar" and demand is not None:
            return demand.field
        return {"logprobs": "top_logprobs", "nice": "priority"}.get(field or "", field)

    def to_chat(self, owner: str) -> Chat:
        """The same for the inference service, on behalf of `owner`."""
        demand = self.demand
        return Chat(
            messages=[
                ChatMessage(
                    # OpenAI's newer word for the same role; chat templates know the older one.
                    role="system" if message.role == "developer" else message.role,
                    content=message.content
                    if message.content is None or isinstance(message.content, str)
                    else [{"type": part.type, "text": part.text} for part in message.content],
                    name=message.name,
                    tool_calls=[msgspec.to_builtins(call) for call in message.tool_calls or ()] or None,
                    tool_call_id=message.tool_call_id,
                )
                for message in self.messages
            ],
            model=self.model or None,
            max_tokens=self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
            stop=[self.stop] if isinstance(self.stop, str) else list(self.stop or ()),
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=0 if self.top_k == -1 else self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            n=self.n or 1,
            grammar=None if demand is None else demand.grammar,
            logit_bias=self.logit_bias or {},
            min_tokens=self.min_tokens or 0,
            ignore_eos=bool(self.ignore_eos),
            stop_token_ids=self.stop_token_ids or [],
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            tools=[msgspec.to_builtins(tool) for tool in self.tools or ()],
            tool_choice=None if not self.tools else msgspec.to_builtins(self.tool_choice),
            owner=owner,
            process_class=TIERS[self.service_tier or "auto"],
            nice=self.priority or 0,
        )


# Fields that are not supported yet, and the values that ask for nothing and so are fine.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"], []),
    "web_search_options": (),
    "best_of": (1,),
    "echo": (False,),
    "use_beam_search": (False,),
    "prompt_logprobs": (0, False),
    "chat_template": (),
    "continue_final_message": (False,),
}
_REFUSED_IN_MESSAGES: dict[str, tuple[Any, ...]] = dict.fromkeys(("function_call", "audio"), ([],))

# A body is looked over before it is built: what is refused, too long or too many never becomes objects.
_NULL = msgspec.Raw(b"null")
_LONGEST_HARMLESS = 256  # bytes
# Bytes that a field may have before it is built.
_LONGEST: dict[str, tuple[int, str]] = {
    # A character takes 12 at most, as two escapes.
    "stop": (
        MAX_STOPS * (MAX_STOP_LENGTH * 12 + 64),
        f"at most {MAX_STOPS} texts of at most {MAX_STOP_LENGTH} characters",
    ),
    "logit_bias": (64 << 10, "at most 64 KiB"),
    "stop_token_ids": (4 << 10, "at most 4 KiB"),
    **dict.fromkeys((*GRAMMAR_FIELDS, "tools"), (256 << 10, "at most 256 KiB")),
}
_MessageOutline = msgspec.defstruct(
    "_MessageOutline",
    [("role", msgspec.Raw), *((name, msgspec.Raw, _NULL) for name in _REFUSED_IN_MESSAGES)],
    gc=False,
)
_Outline = msgspec.defstruct(
    "_Outline",
    [
        ("messages", list[_MessageOutline], msgspec.field(default_factory=list)),  # type: ignore[valid-type] # made above
        *((name, msgspec.Raw, _NULL) for name in (*_REFUSED, *_LONGEST)),
    ],
)
_outline_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Outline)
_decoder = msgspec.json.Decoder(ChatRequest)

# What is allowed, in words and as a test; a comparison with NaN is false, so NaN never fits.
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("0 to 2", lambda value: 0 <= value <= 2),
    "top_p": ("0 to 1", lambda value: 0 <= value <= 1),
    "min_p": ("0 to 1", lambda value: 0 <= value <= 1),
    "top_k": (f"-1 or 0 (all) to {LARGEST}", lambda value: -1 <= value <= LARGEST),
    "repetition_penalty": ("more than 0 to 10", lambda value: 0 < value <= 10),
    "presence_penalty": ("-2 to 2", lambda value: -2 <= value <= 2),
    "frequency_penalty": ("-2 to 2", lambda value: -2 <= value <= 2),
    "seed": ("-2^63 to 2^63-1", lambda value: -(2**63) <= value < 2**63),
    "max_tokens": (f"1 to {LARGEST}", lambda value: 1 <= value <= LARGEST),
    "max_completion_tokens": (f"1 to {LARGEST}", lambda value: 1 <= value <= LARGEST),
    "min_tokens": (f"0 to {LARGEST}", lambda value: 0 <= value <= LARGEST),
    "priority": ("0 (first) to 19", lambda value: 0 <= value <= 19),
    "top_logprobs": (f"0 to {MAX_LOGPROBS}", lambda value: 0 <= value <= MAX_LOGPROBS),
}


def parse_chat(body: bytes | bytearray) -> ChatRequest:
    """The request in `body`.

    Raises `Invalid`, and `Unimplemented` for what is not supported yet; both name the field.
    """
    request = _decode(body)
    _check_answers(request)
    for name, (allowed, fits) in _RANGES.items():
        value = getattr(request, name)
        if value is not None and not fits(value):
            raise Invalid(f"'{name}' is {_short(value)}, allowed is {allowed}", field=name)
    _check_model(request)
    _check_tier(request)
    _check_lengths(request)
    _check_stop(request)
    if request.top_logprobs and not request.logprobs:
        raise Invalid("'top_logprobs' needs 'logprobs' to be true", field="top_logprobs")
    _check_messages(request.messages)
    check_tools(request)
    demand_of(request)
    return request


def _decode(body: bytes | bytearray) -> ChatRequest:
    try:
        _check_outline(_outline_decoder.decode(body))
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"the body is not JSON: {error}") from error
    except RecursionError as error:
        raise Invalid("the body is nested too deeply") from error


def _invalid(error: msgspec.ValidationError) -> Invalid:
    sentence, field = fault_of(error)
    if field is None and sentence.startswith("Object missing required field"):
        field = sentence.partition("`")[2].rstrip("`")
    return Invalid(sentence + (f" in '{field}'" if field else ""), field=field)


def _check_outline(outline: Any) -> None:
    for name, harmless in _REFUSED.items():
        if not _asks_for_nothing(getattr(outline, name), harmless):
            raise _unsupported(f"'{name}'", name)
    for name, (longest, allowed) in _LONGEST.items():
        if len(bytes(getattr(outline, name))) > longest:
            raise Invalid(f"'{name}' is too long: {allowed}", field=name)
    if len(outline.messages) > MAX_MESSAGES:
        raise Invalid(f"there are {len(outline.messages)} messages, at most {MAX_MESSAGES}", field="messages")
    for number, message in enumerate(outline.messages):
        for name, harmless in _REFUSED_IN_MESSAGES.items():
            if not _asks_for_nothing(getattr(message, name), harmless):
                where = f"messages[{number}].{name}"
                raise _unsupported(f"'{where}'", where)


def _asks_for_nothing(given: msgspec.Raw, harmless: tuple[Any, ...]) -> bool:
    if given is _NULL:
        return True
    text = bytes(given)
    if len(text) > _LONGEST_HARMLESS:
        return False
    value = msgspec.json.decode(text)
    # 0 == False in Python, and here they are as good as each other.
    return value is None or value in harmless


def _check_answers(request: ChatRequest) -> None:
    if request.n is not None and not 1 <= request.n <= MOST_ANSWERS:
        raise Invalid(f"'n' is {_short(request.n)}, allowed is 1 to {MOST_ANSWERS}", field="n")


def _check_model(request: ChatRequest) -> None:
    if request.model is not None and len(request.model) > MAX_NAME:
        raise Invalid(f"'model' has {len(request.model)} characters, at most {MAX_NAME}", field="model")


def _check_tier(request: ChatRequest) -> None:
    if request.service_tier is not None and request.service_tier not in TIERS:
        known = ", ".join(TIERS)
        raise Invalid(f"'service_tier' is {_short(request.service_tier)}, allowed are {known}", field="service_tier")


def _check_lengths(request: ChatRequest) -> None:
    one, other = request.max_tokens, request.max_completion_tokens
    if one is not None and other is not None and one != other:
        raise Invalid(
            f"'max_tokens' is {one} and 'max_completion_tokens' is {other}: give one of them",
            field="max_completion_tokens",
        )


def _check_stop(request: ChatRequest) -> None:
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stops) > MAX_STOPS:
        raise Invalid(f"'stop' has {len(stops)} texts, at most {MAX_STOPS}", field="stop")
    for stop in stops:
        if not stop:
            raise Invalid("'stop' has an empty text", field="stop")
        if len(stop) > MAX_STOP_LENGTH:
            raise Invalid(f"'stop' has a text of {len(stop)} characters, at most {MAX_STOP_LENGTH}", field="stop")


def _check_messages(messages: list[RequestMessage]) -> None:
    if not messages:
        raise Invalid("'messages' is empty: at least one is needed", field="messages")
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if message.role == "function":
            raise _unsupported("the role 'function'", f"{where}.role", remedy="its newer name is tool")
        if message.role not in ROLES:
            known = ", ".join(ROLES)
            raise Invalid(f"'{where}.role' is {_short(message.role)}, allowed are {known}", field=f"{where}.role")
        if message.tool_calls and message.role != "assistant":
            raise Invalid(f"'{where}' has calls, and is no assistant's turn", field=f"{where}.tool_calls")
        check_calls(message.tool_calls or (), f"{where}.tool_calls")
        if message.role == "tool" and not message.tool_call_id:
            raise Invalid(f"'{where}' does not name the call that it answers", field=f"{where}.tool_call_id")
        if message.content is None and message.tool_calls:
            continue
        if message.content is None:
            raise Invalid(f"'{where}' has no content", field=f"{where}.content")
        if not isinstance(message.content, str):
            _check_parts(message.content, f"{where}.content")


def _check_parts(parts: list[ContentPart], where: str) -> None:
    if not parts:
        raise Invalid(f"'{where}' is an empty list of parts", field=where)
    for number, part in enumerate(parts):
        kind = part.type
        if not isinstance(kind, str):
            raise Invalid(f"'{where}[{number}]' has no type", field=f"{where}[{number}].type")
        if kind != "text":
            raise _unsupported(f"a content part of type {_short(kind)}", f"{where}[{number}].type")
        if not isinstance(part.text, str):
            raise Invalid(f"'{where}[{number}].text' is not a text", field=f"{where}[{number}].text")


def _unsupported(what: str, field: str, *, remedy: str | None = None) -> Unimplemented:
    return Unimplemented(f"{what} is not supported yet", field=field, remedy=remedy)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 64 else text[:61] + "..."
