"""What a device is that gives whole answers by itself, such as somebody else's inference server.

Nothing of ours runs on it, so it has no executor: a model's name and a request go there, and text comes back. How many
requests it has at a time, which server gets one, and what is done when one breaks off is decided by who asks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from microkernel.asking import ChatMessage, OutputParams, TokenLogprob
from microkernel.driver import DeviceFacts
from microkernel.message import Message

__all__ = ["Generate", "Generated", "ModelServer", "ServedModel", "Spent"]


class ServedModel(Message, kw_only=True):
    """A model that can be asked there. `context_length` is in tokens, `created` Unix time; 0 where it is not told."""

    name: str
    context_length: int = 0
    created: int = 0


class Generate(OutputParams, kw_only=True):
    """Ask for one answer of `model`: the next turn of `messages`, or what follows `prompt`. One of these is given.

    `max_tokens` None goes on to the end of the context. `tools` and `tool_choice` are as in OpenAI's API.
    """

    model: str
    messages: list[ChatMessage] | None = None
    prompt: str | list[int] | None = None
    max_tokens: int | None = None
    stop: list[str] = []
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] | None = None


class Spent(Message, kw_only=True):
    """Tokens that an answer took. Of the prompt's, `cached_tokens` had been read before."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Generated(Message, kw_only=True):
    """A piece of an answer, made by `device`. The last one has `finish_reason`, and `spent` where the device tells it.

    The first piece comes when the device has taken the request, with empty text. `tokens` is how many were made for
    this piece, as far as is known before the end. `tool_calls` are parts of calls, as OpenAI's API streams them.
    """

    text: str = ""
    tool_calls: list[dict[str, Any]] = []
    logprobs: list[TokenLogprob] = []
    tokens: int = 0
    finish_reason: str | None = None
    spent: Spent | None = None
    device: str = ""


class ModelServer(ABC):
    """One device that gives whole answers. All of it is called on the loop, and answers at once where it does not wait.

    `weight` says how much it is asked beside others that have the same model. `queue` is how many may wait for it.
    """

    facts: DeviceFacts
    weight: float = 1.0
    queue: int = 256

    @property
    @abstractmethod
    def places(self) -> int:
        """How many requests it may have at a time now, one at least."""

    @property
    @abstractmethod
    def models(self) -> Sequence[ServedModel]:
        """What can be asked there, as it was last seen; also while it cannot be reached."""

    @abstractmethod
    def fault(self) -> str | None:
        """What is wrong with it, None while it is healthy. It is asked all the same, after those that are healthy."""

    @abstractmethod
    def lost(self) -> str | None:
        """Why it is not asked at all now, None while it is; unlike a device of ours it may come back."""

    @abstractmethod
    async def open(self) -> None:
        """Make ready what the rest needs, without asking it anything."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of all; nothing is asked afterwards."""

    @abstractmethod
    async def look(self) -> float:
        """Ask how it is and which models it has; returns after how many seconds to look again.

        What it meets is no reason to raise: `fault` and `lost` tell it.
        """

    @abstractmethod
    def generate(self, ask: Generate) -> AsyncGenerator[Generated, None]:
        """The answer, piece by piece, read no faster than it is asked for. Closing it ends the work over there.

        Raises `Unimplemented` and `Invalid` that name the field for what cannot be asked there, and for the rest what
        became of it, `Unavailable` with `may_have_run` and `Overloaded` among them.
        """
