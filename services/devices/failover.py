"""What is done when a model server fails: who else is asked, and what the asker is told. Plain functions and a class.

Before any of the answer was given, another server may be asked without anybody noticing. After that the rest would be
another answer's, as a rule: what a server samples depends on its build, its batch and its random state. Only an answer
at temperature 0 is asked for again elsewhere, and it goes on if the other server says word for word what was given.
"""

from __future__ import annotations

from collections.abc import Sequence

from microkernel.errors import Aborted, Code, MicrokernelError, Overloaded, Unavailable, copy_of

__all__ = ["Given", "broken_off", "named", "verdict", "worth_another"]

LONGEST = 1 << 20  # characters of an answer that are kept to compare with

ELSEWHERE = frozenset(
    {
        Code.UNAVAILABLE,
        Code.OVERLOADED,
        Code.PRECONDITION,  # it does not take our key
        Code.NOT_FOUND,  # it has the model no longer
        Code.UNIMPLEMENTED,  # another server may know what this one does not
        Code.TOO_BIG,  # another may have a longer context
        Code.INTERNAL,
        Code.DATA_LOSS,
    }
)


class Given:
    """What the reader has of an answer. With `keep`, its text, while the same may be asked for again."""

    def __init__(self, *, keep: bool) -> None:
        self.text = ""
        self.tokens = 0
        self.some = False  # whether the reader has anything
        self._keep = keep
        self._at: int | None = None  # how much of it another server has said too

    @property
    def may_be_repeated(self) -> bool:
        """Whether another server may be asked for it."""
        return self._keep or not self.some

    def again(self) -> None:
        """Another server begins from the start."""
        self._at = 0 if self.text else None

    def push(self, text: str, tokens: int, *, ended: bool) -> str:
        """What of `text` the reader does not have yet. Raises `Aborted` where it is not what was given before."""
        if self._at is not None:
            known = self.text[self._at : self._at + len(text)]
            if not text.startswith(known) or (ended and self._at + len(text) < len(self.text)):
                raise Aborted("another server says something else")
            self._at += len(known)
            text = text[len(known) :]
            if self._at < len(self.text):
                return ""
            self._at, tokens = None, 1 if text else 0
        self.some = self.some or bool(text)
        self.tokens += tokens
        if self._keep:
            self.text += text
            if len(self.text) > LONGEST:
                self._keep, self.text = False, ""
        return text


def worth_another(error: MicrokernelError) -> bool:
    """Whether another server may answer where one has failed so."""
    return error.code in ELSEWHERE


def named(name: str, error: MicrokernelError) -> MicrokernelError:
    """What server `name` has met, with its name."""
    told = copy_of(error, type(error))
    told.message = f"{name}: {error.message}"
    return told


def broken_off(given: Given, failures: Sequence[tuple[str, MicrokernelError]]) -> Unavailable:
    """What the reader of half an answer is told; those who went on with it failed too, each with its error."""
    (first, error), *others = failures
    then = "".join(f"; {name}: {other.message}" for name, other in others)
    return Unavailable(
        f"{first} broke off after {given.tokens} tokens: {error.message}{then}",
        remedy="ask again",
        retry_after=error.retry_after,
        may_have_run=True,
    )


def verdict(model: str, failures: Sequence[tuple[str, MicrokernelError]]) -> MicrokernelError:
    """What is told where all have failed, each with its error: one of them, or all in one sentence."""
    errors = [error for _, error in failures]
    if len(errors) == 1:
        return named(*failures[0])
    told = "; ".join(f"{name}: {error.message}" for name, error in failures)
    message = f"no server could answer for '{model}': {told}"
    if all(isinstance(error, Overloaded) for error in errors):
        waits = [error.retry_after for error in errors if error.retry_after is not None]
        return Overloaded(message, retry_after=min(waits, default=1.0))
    passing = [error for error in errors if isinstance(error, Unavailable | Overloaded)]
    if passing:
        ran = any(error.may_have_run for error in passing)
        waits = [error.retry_after for error in passing if error.retry_after is not None]
        return Unavailable(message, retry_after=min(waits, default=1.0), may_have_run=ran)
    last = copy_of(errors[-1], type(errors[-1]))
    last.message = message
    return last
