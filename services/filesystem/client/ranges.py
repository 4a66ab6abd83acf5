"""Which parts of which files are read at once, when many are asked for."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Asked", "Span", "spans", "within"]

GAP = 64 << 10  # bytes between two parts that cost less than another stream


class Asked(NamedTuple):
    """One part of a file, and its place among those that were asked for; no `stop` is the end."""

    number: int
    start: int
    stop: int | None


class Span(NamedTuple):
    """What is read at once, and the parts that are in it."""

    path: str
    start: int
    stop: int | None
    asked: tuple[Asked, ...]

    def cut(self, content: bytes) -> dict[int, bytes]:
        """The parts by their numbers, of what was read."""
        return {
            number: content[start - self.start : None if stop is None else max(start, stop) - self.start]
            for number, start, stop in self.asked
        }


def spans(path: str, asked: list[Asked], gap: int | None = None) -> list[Span]:
    """Parts of one file, those together that are no further than `gap` bytes from each other."""
    gap = GAP if gap is None else gap
    found: list[Span] = []
    for part in sorted(asked, key=lambda each: each.start):
        last = found[-1] if found else None
        if last is None or (last.stop is not None and part.start > last.stop + gap):
            found.append(Span(path, part.start, part.stop, (part,)))
            continue
        stop = None if last.stop is None or part.stop is None else max(last.stop, part.stop)
        found[-1] = Span(path, last.start, stop, (*last.asked, part))
    return found


def within(start: int | None, stop: int | None, size: int) -> tuple[int, int]:
    """A part as a slice has it, which may count from the end, in a file of `size` bytes."""
    first, last, _ = slice(start, stop).indices(size)
    return first, max(first, last)
