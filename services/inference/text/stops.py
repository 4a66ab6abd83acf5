"""Hot, once a piece of text: ends an answer at the first stop string, and shows no part of one.

Every stop has an automaton (Knuth, Morris, Pratt, https://doi.org/10.1137/0206024) whose state is the length
of its longest beginning that the text ends with. The longest state of all is what must be held back.

Text is read character by character, so that the answer does not depend on how it was cut: the first stop to
be complete ends it, the longest of those that are complete together.
"""

from __future__ import annotations

from collections.abc import Sequence

from microkernel.errors import Invalid

__all__ = ["MAX_STOPS", "MAX_STOP_LENGTH", "StopMatcher", "check_stops"]

MAX_STOPS = 16
MAX_STOP_LENGTH = 256  # characters


def check_stops(stops: Sequence[str]) -> None:
    """Raises `Invalid` for too many stops, a stop that is too long, or an empty one."""
    if len(stops) > MAX_STOPS:
        raise Invalid(f"stop has {len(stops)} strings, allowed are {MAX_STOPS}", field="stop")
    for place, stop in enumerate(stops):
        if not stop:
            raise Invalid(f"stop[{place}] is empty", field="stop")
        if len(stop) > MAX_STOP_LENGTH:
            raise Invalid(f"stop[{place}] has {len(stop)} characters, allowed are {MAX_STOP_LENGTH}", field="stop")


class StopMatcher:
    """Cuts one answer's text before the first of `stops`; raises `Invalid` as `check_stops` does."""

    def __init__(self, stops: Sequence[str]) -> None:
        check_stops(stops)
        self._stops = [_Automaton(stop) for stop in dict.fromkeys(stops)]
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """(text that is safe to show, whether a stop was met). After a stop there is no more text."""
        if self._stopped:
            return "", True
        if not self._stops:
            return text, False
        for place, character in enumerate(text):
            longest = 0
            for stop in self._stops:
                if stop.feed(character):
                    longest = max(longest, len(stop.text))
            if longest:
                seen = self._held + text[: place + 1]
                self._held, self._stopped = "", True
                return seen[: len(seen) - longest], True
        seen = self._held + text
        safe = len(seen) - max(stop.matched for stop in self._stops)
        self._held = seen[safe:]
        return seen[:safe], False

    def flush(self) -> str:
        """What was held back, when the answer has ended without a stop."""
        held, self._held = self._held, ""
        return held


class _Automaton:
    """One stop and how much of it the text ends with."""

    __slots__ = ("_fallback", "matched", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._fallback = [0] * len(text)  # for each length less one: the longest shorter beginning it ends with
        length = 0
        for place in range(1, len(text)):
            while length and text[place] != text[length]:
                length = self._fallback[length - 1]
            length += text[place] == text[length]
            self._fallback[place] = length

    def feed(self, character: str) -> bool:
        """Take one more character; whether the stop is complete with it."""
        matched = self.matched
        while matched and self.text[matched] != character:
            matched = self._fallback[matched - 1]
        self.matched = matched + (self.text[matched] == character)
        return self.matched == len(self.text)
