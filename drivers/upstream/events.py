"""A stream of server-sent events as bytes come in (hot: once a read), without a loop.

https://html.spec.whatwg.org/multipage/server-sent-events.html: lines end in LF, CR or CRLF, wherever the bytes are cut;
comments and fields but `data` are passed over; an event ends with an empty line. Text is bytes until an event is whole,
so a cut within a character matters to nobody. Beyond the standard, an event that the end of the stream cuts off counts,
for some servers leave the last empty line out.
"""

from __future__ import annotations

__all__ = ["BadAnswer", "EventReader"]

LONGEST = 1 << 20  # bytes of a line, and of an event's data
BOM = b"\xef\xbb\xbf"


class BadAnswer(Exception):
    """What came is not what the API promises; the sentence says what is wrong."""


class EventReader:
    """Gives the data of each event once, in order."""

    def __init__(self) -> None:
        self._rest = bytearray()  # a line that has not ended
        self._data: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._begun = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that end within `chunk`. Raises `BadAnswer` for what is too long."""
        if not chunk:
            return []
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]
        self._after_cr = chunk[-1:] == b"\r" if chunk else False
        lines = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        events: list[bytes] = []
        last = lines.pop()
        for line in lines:
            if self._rest:
                self._rest += line
                line = bytes(self._rest)  # noqa: PLW2901
                self._rest.clear()
            self._line(line, events)
        self._rest += last
        if len(self._rest) > LONGEST:
            raise BadAnswer(f"a line is longer than {LONGEST} bytes")
        return events

    def end(self) -> list[bytes]:
        """The data of an event that was not ended, at the end of the stream."""
        events: list[bytes] = []
        self._line(bytes(self._rest), events)
        self._rest.clear()
        self._line(b"", events)
        return events

    def _line(self, line: bytes, events: list[bytes]) -> None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(BOM)
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
                self._data, self._size = [], 0
            return
        if not line.startswith(b"data"):
            return
        name, _, value = line.partition(b":")
        if name != b"data":
            return
        self._size += len(value)
        if self._size > LONGEST:
            raise BadAnswer(f"an event is longer than {LONGEST} bytes")
        self._data.append(value.removeprefix(b" "))
