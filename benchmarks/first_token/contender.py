"""What takes part: something that can be started, and once started can be asked, looked at and ended."""

from __future__ import annotations

from typing import Protocol

import msgspec

__all__ = ["Answer", "Broken", "Contender", "Late", "Memory", "Prompt", "Running"]


class Broken(Exception):
    """A contender could not do what it was asked; it takes no further part."""


class Prompt(msgspec.Struct, frozen=True):
    """One conversation: as its messages, and as the very tokens that the model's template makes of them."""

    messages: list[dict[str, str]]
    ids: list[int]


class Late(msgspec.Struct, frozen=True):
    """A prompt that comes when each of the others has `after` tokens of its answer."""

    prompt: list[int]
    after: int


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one stream went: tokens counted, and when the first and the last came, in seconds since all were asked.

    `times` are those of all tokens where the contender tells them, and `asked` is when it was asked itself.
    """

    prompt_tokens: int
    tokens: int
    first: float
    last: float
    times: list[float] = []
    asked: float = 0.0


class Memory(msgspec.Struct, frozen=True):
    """Bytes. `peak` is the most that was resident, mapped files included; `private` what is no file's, now.

    None where the operating system does not tell.
    """

    peak: int
    private: int | None


class Running(Protocol):
    """A contender that has made its first token."""

    def generate(self, prompts: list[Prompt], tokens: int) -> list[Answer]:
        """Answer all prompts at once, greedily, with `tokens` tokens each. Raises `Broken`."""

    def memory(self) -> Memory:
        """Of its process and the processes below it."""

    def close(self) -> None:
        """End the process, and wait for it."""


class Contender(Protocol):
    """Something that runs the model. `about` says in a line how it is driven, `command` how its process is started."""

    name: str
    about: str

    @property
    def command(self) -> list[str]: ...

    def versions(self) -> dict[str, str]:
        """The packages that matter, by name."""

    def missing(self) -> str | None:
        """Why it cannot take part, or None."""

    def start(self, prompt: Prompt) -> Running:
        """Start a process, and return when the first token of an answer to `prompt` has come. Raises `Broken`."""
