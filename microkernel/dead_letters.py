"""What becomes of messages that nobody could handle: counted, and published on `dead.letter`.

Named after the dead letter channel of Hohpe and Woolf, Enterprise Integration Patterns. A letter has `to` (the handler
that should have got it), `why`, and of an event its `subject` and a `preview` of its body; `events` is how many it
stands for where they were dropped unseen. A letter about a letter is not sent: a subscriber of `dead.letter` that fails
would otherwise keep the node busy with its own failures.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from microkernel.message import FromJson
from microkernel.subjects import check_pattern, covers

if TYPE_CHECKING:
    from microkernel.events import Bus

__all__ = ["SUBJECT", "DeadLetters", "preview"]

SUBJECT = "dead.letter"
MAX_PREVIEW = 256  # characters
MAX_TEXT = 80  # characters or bytes of one value in a preview
MAX_ITEMS = 8  # of one container in a preview

_NAMES = check_pattern(SUBJECT)


class DeadLetters:
    """Publishes letters on `bus`. `count` is how many messages were lost since the node began."""

    def __init__(self, bus: Bus) -> None:
        self.count = 0
        self._bus = bus

    def message(self, to: str, why: str) -> None:
        """A one-way message to handler `to` was lost."""
        self.count += 1
        self._send({"to": to, "why": why})

    def event(self, to: str, why: str, subject: str, body: Any) -> None:
        """An event of `subject` could not be handled by `to`."""
        self.count += 1
        if subject != SUBJECT:
            self._send({"to": to, "why": why, "subject": subject, "preview": preview(body)})

    def dropped(self, to: str, why: str, pattern: str, events: int) -> None:
        """So many `events` of `pattern` were dropped before `to` could read them."""
        self.count += events
        if not covers(check_pattern(pattern), _NAMES):
            self._send({"to": to, "why": why, "subject": pattern, "events": events})

    def _send(self, letter: dict[str, Any]) -> None:
        self._bus.publish("dead.letter", letter)


def preview(body: Any) -> str:
    """The beginning of a body, much as Python writes it: at most `MAX_PREVIEW` characters, whatever its size.

    No `__repr__` of a plugin's is run, and nothing large is written to be cut: bodies come from anybody.
    """
    text = _brief(body, depth=3)
    return text if len(text) <= MAX_PREVIEW else text[: MAX_PREVIEW - 1] + "…"


def _brief(value: Any, depth: int) -> str:
    if value is None or type(value) in {bool, float}:
        return repr(value)
    if type(value) is int:
        return repr(value) if value.bit_length() <= 128 else f"<int of {value.bit_length()} bits>"
    if type(value) is FromJson:
        value = value.value
    if isinstance(value, msgspec.Raw):
        value = bytes(memoryview(value)[: MAX_TEXT + 1])
    if isinstance(value, str):
        return repr(str.__getitem__(value, slice(0, MAX_TEXT))) + ("…" if str.__len__(value) > MAX_TEXT else "")
    if isinstance(value, bytes):
        return repr(bytes.__getitem__(value, slice(0, MAX_TEXT))) + ("…" if bytes.__len__(value) > MAX_TEXT else "")
    name = type(value).__name__
    if depth == 0:
        return f"<{name}>"
    if type(value) is dict:
        return "{" + _list((f"{_brief(k, 0)}: {_brief(v, depth - 1)}" for k, v in value.items()), len(value)) + "}"
    if type(value) in {list, tuple}:
        return "[" + _list((_brief(item, depth - 1) for item in value), len(value)) + "]"
    if isinstance(value, msgspec.Struct):
        fields = value.__struct_fields__
        return f"{name}({_list((f'{f}={_brief(getattr(value, f), depth - 1)}' for f in fields), len(fields))})"
    return f"<{name}>"


def _list(items: Iterable[str], count: int) -> str:
    return ", ".join(islice(items, MAX_ITEMS)) + (", …" if count > MAX_ITEMS else "")
