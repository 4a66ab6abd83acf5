"""What the inference service answers: chats and completions as streams of pieces, and its loaded models."""

from __future__ import annotations

from typing import Any

from microkernel.asking import ChatMessage, Grammar, OutputParams, SamplingParams, TokenLogprob
from microkernel.buffers import Array
from microkernel.message import Message
from microkernel.policy import ProcessClass

__all__ = [
    "LONGEST_TEXT",
    "MOST_ANSWERS",
    "MOST_CHARACTERS",
    "MOST_TEXTS",
    "Chat",
    "ChatMessage",
    "Complete",
    "Embed",
    "Embeddings",
    "ForgetContext",
    "Grammar",
    "ListModels",
    "LoadAdapter",
    "LoadModel",
    "LoadedModel",
    "OutputParams",
    "PauseProcess",
    "Piece",
    "RestoreContext",
    "ResumeProcess",
    "SamplingParams",
    "SaveContext",
    "SavedContext",
    "TuneModel",
    "UnloadAdapter",
    "TokenLogprob",
    "UnloadModel",
    "Usage",
]


MOST_ANSWERS = 128
"""To one prompt."""

MOST_TEXTS = 8192
LONGEST_TEXT = 1 << 20
MOST_CHARACTERS = 1 << 26
"""Of texts that vectors are made of at once, of characters in one, and in all of them."""


class Chat(OutputParams, kw_only=True):
    """Ask for the next turn. `max_tokens` None goes on to the end of the context. `model` None is the default one;
    the name of an adapter is its model with it.

    `n` answers are given to the same prompt, each with a seed of its own: the given one, the next, and so on. `owner`
    is whom the work is for, where the call itself comes from no user. `process_class` and `nice` say how urgent it is,
    and `due` in how many seconds it should have ended: when its turn is, the scheduler's policy makes of that.
    `tools` and `tool_choice` are as in OpenAI's API, for models that other devices serve.
    """

    messages: list[ChatMessage]
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] | None = None
    model: str | None = None
    max_tokens: int | None = None
    stop: list[str] = []
    n: int = 1
    owner: str = "local"
    process_class: ProcessClass = ProcessClass.INTERACTIVE
    nice: int = 0
    due: float | None = None


class Complete(OutputParams, kw_only=True):
    """Ask for what follows `prompt`: text, or token ids that are taken as they are. Fields as in `Chat`."""

    prompt: str | list[int]
    model: str | None = None
    max_tokens: int | None = None
    stop: list[str] = []
    n: int = 1
    owner: str = "local"
    process_class: ProcessClass = ProcessClass.INTERACTIVE
    nice: int = 0
    due: float | None = None


class Usage(Message, kw_only=True):
    """What an answer cost. Times in seconds: waiting for the engine, and from asking to the first token.

    Of the prompt's tokens, `cached_tokens` were known from before, and did not have to be read.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    queue_seconds: float = 0.0
    first_token_seconds: float = 0.0
    total_seconds: float = 0.0


class Piece(Message, kw_only=True):
    """One item of an answer's stream. The last one has `finish_reason` (`stop` or `length`) and `usage`.

    Of a model that another device serves, there is no `usage` where that does not tell, and `finish_reason` may be
    `tool_calls` or `content_filter`. `tool_calls` are parts of calls, as OpenAI's API streams them.

    The first piece comes when the request was admitted, with empty text: from it on, `pid` can be shown and killed.
    `logprobs` are those of the tokens that the text is made of, if they were asked for. Those of a token with a part of
    a character come with the character. Of several answers, each has such pieces of its own; `index` says of which one
    a piece is. `token_ids` are the tokens since the piece before, if they were asked for; the text of the last ones may
    be in the next piece.
    """

    text: str = ""
    index: int = 0
    tool_calls: list[dict[str, Any]] = []
    logprobs: list[TokenLogprob] = []
    token_ids: list[int] = []
    pid: int = 0
    model: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None


class Embed(Message, kw_only=True):
    """Ask for a vector of each text. `model` None is the one in the settings, which is pulled when it is first asked.

    There may be 8,192 texts, of 1,048,576 characters each and 67,108,864 in all. What an encoder does not take of a
    long text is left out. An empty text has a vector too. A model of other `dimensions` than are asked for is refused.
    Other fields as in `Chat`.
    """

    texts: list[str]
    model: str | None = None
    dimensions: int | None = None
    owner: str = "local"
    process_class: ProcessClass = ProcessClass.BACKGROUND
    nice: int = 0
    due: float | None = None


class Embeddings(Message, kw_only=True):
    """Vectors of texts: `vectors` is float32 [texts, dimensions], in the order of the texts.

    `tokens` were computed in all, those of begin and end included; of `truncated` texts the end was left out.
    """

    vectors: Array
    model: str
    dimensions: int
    tokens: int
    truncated: int = 0


class PauseProcess(Message):
    """Let an answer rest; its reader waits. Its pages stay while nobody else needs them, or go at once (`swap`)."""

    pid: int
    swap: bool = False


class ResumeProcess(Message):
    """Let a paused answer go on, with the text that it would have had."""

    pid: int


class SaveContext(Message):
    """Keep an answer as it is now under a name of the caller's: prompt, text, pages, random state. It goes on."""

    pid: int
    name: str


class RestoreContext(Message):
    """Go on with a saved context, as a new process: a stream as that of a chat. It can be restored again.

    With `replay`, the text that there was comes first; without, only what follows.
    """

    name: str
    replay: bool = True


class ForgetContext(Message):
    """Delete a saved context."""

    name: str


class SavedContext(Message):
    """A context that is kept, and its bytes on disk."""

    name: str
    bytes: int


class ListModels(Message):
    """Which models: those of the node that is asked, or `everywhere` those of the other nodes of its cluster, too."""

    everywhere: bool = False


class LoadModel(Message):
    """Load a model by name or ref; it is pulled first if it is not stored yet."""

    ref: str


class TuneModel(Message, kw_only=True):
    """Measure what a model's sizes on its device are chosen by, and use what is best; None is the default model.

    With `anyway`, also where other processes keep the machine busy, beside which it does not hold.
    """

    model: str | None = None
    anyway: bool = False


class UnloadModel(Message):
    """Take a loaded model off its device; requests that use it end with `UNAVAILABLE`."""

    name: str


class LoadAdapter(Message, kw_only=True):
    """Load a low-rank adapter beside a model, from the store or a path; `name` is what it is asked by.

    `model` None is the default one. Without a `name` it gets the one that the store has.
    """

    ref: str
    model: str | None = None
    name: str | None = None


class UnloadAdapter(Message):
    """Take an adapter off its device; refused with `PRECONDITION_FAILED` while answers use it."""

    name: str


class LoadedModel(Message, kw_only=True):
    """A model that answers. `state` is loading, ready or failed (then `why` says so). `created` is Unix time.

    One that other devices serve, is loaded by nobody here: `device` names these.

    An adapter is shown as one too: `parent` is the model that it is for. One that `embeds` makes vectors of texts, and
    writes none.
    """

    name: str
    state: str
    why: str = ""
    architecture: str = ""
    quantization: str = ""
    parameters: int = 0
    context_length: int = 0
    weight_bytes: int = 0
    cache_bytes: int = 0
    device: str = ""
    default: bool = False
    created: int = 0
    running: int = 0
    waiting: int = 0
    parent: str = ""
    embeds: bool = False
