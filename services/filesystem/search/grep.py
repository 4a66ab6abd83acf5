"""Lines of text files that have a pattern in them, each file searched on a thread with a limit of time.

The package `regex` is used for that limit, and since it lets go of the interpreter meanwhile: a pattern that a user
sends may take for ever.
"""

from __future__ import annotations

import regex

from microkernel.errors import Invalid
from services.filesystem.messages import Match
from services.filesystem.search.pieces import text_in

__all__ = ["LARGEST", "Pattern"]

LARGEST = 64 << 20  # bytes of a file that is searched
PATIENCE = 2.0  # seconds for a file
SHOWN = 400  # characters of a line
LONGEST = 1000  # characters of a pattern


class Pattern:
    """What is looked for."""

    def __init__(self, pattern: str, *, ignore_case: bool = False, literal: bool = False) -> None:
        """Raises `Invalid` for what is no pattern."""
        if len(pattern) > LONGEST:
            raise Invalid(f"the pattern has {len(pattern)} characters, allowed are {LONGEST}", field="pattern")
        flags = regex.IGNORECASE if ignore_case else 0
        try:
            self._compiled = regex.compile(regex.escape(pattern) if literal else pattern, flags)
        except regex.error as error:
            raise Invalid(f"'{pattern}' is no pattern: {error}", field="pattern", remedy="--literal") from error

    def matches(self, path: str, content: bytes, most: int) -> list[Match]:
        """The first `most` lines of a file that have it; none for what is no text. Raises `Invalid` where it takes too
        long.
        """
        text = text_in(content)
        if text is None:
            return []
        found: list[Match] = []
        try:
            for number, line in enumerate(text.splitlines(), start=1):
                if self._compiled.search(line, timeout=PATIENCE, concurrent=True) is not None:
                    found.append(Match(path=path, line=number, text=line[:SHOWN]))
                    if len(found) == most:
                        break
        except TimeoutError as error:
            raise Invalid(
                f"the pattern takes more than {PATIENCE:g} s for a line of {path}",
                field="pattern",
                remedy="write it without nested repetition",
            ) from error
        return found
