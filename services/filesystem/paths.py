"""Paths in the tree: normalised once, where they come in, and refused where they could mean something else elsewhere.

A name that is harmless here may not be on the volume that it is handed to, nor on a machine that a folder is copied to:
so names that decode to separators, devices of other systems, and letters that nobody sees are refused for all.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from urllib.parse import unquote

import msgspec

from microkernel.errors import Invalid

__all__ = ["ROOT", "TreePath", "parse", "twin_key"]

LONGEST_NAME = 255  # bytes, as most file systems have it
LONGEST_PATH = 4096  # bytes
DEEPEST = 64

_DEVICES = re.compile(r"(?:con|prn|aux|nul|clock\$|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(?:\..*)?", re.IGNORECASE)
_PLAIN = re.compile(r"[A-Za-z0-9_\-]+(?:\.[A-Za-z0-9_\-]+)*")
_DRIVE = re.compile(r"[A-Za-z]:")
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # control, format, surrogates, private, none, breaks
_JOINERS = "\u200c\u200d"  # within words of some languages, and within emoji
_SEPARATORS = frozenset("/\\")


class TreePath(msgspec.Struct, frozen=True, order=True):
    """The names from the root to a file or folder; none for the root itself."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return "/" + "/".join(self.names)

    def __truediv__(self, name: str) -> TreePath:
        return TreePath((*self.names, name))

    @property
    def name(self) -> str:
        """The last one; empty for the root."""
        return self.names[-1] if self.names else ""

    @property
    def parent(self) -> TreePath:
        """The folder that it is in; the root's is the root."""
        return TreePath(self.names[:-1])

    def is_within(self, folder: TreePath) -> bool:
        """Whether it is that folder, or in it."""
        return self.names[: len(folder.names)] == folder.names

    def below(self, folder: TreePath) -> TreePath:
        """The rest of the way from a folder that it is within."""
        return TreePath(self.names[len(folder.names) :])


ROOT = TreePath(())


def parse(text: str) -> TreePath:
    """A path from the root, such as `/data/a.txt`. Raises `Invalid` that says what is wrong with which name.

    Separators in a row count as one, and one at the end as none. `.` and `..` are refused: where they lead depends on
    who reads them.
    """
    if not text.startswith("/"):
        raise _invalid(text, "does not begin at the root", "write it from the root on, with '/'")
    if len(text.encode("utf-8", "surrogatepass")) > LONGEST_PATH:
        raise _invalid(text, f"has more than {LONGEST_PATH} bytes")
    parts = text if text.isascii() else unicodedata.normalize("NFC", text)
    names = tuple(name for name in parts.split("/") if name)
    if len(names) > DEEPEST:
        raise _invalid(text, f"is more than {DEEPEST} folders deep")
    for name in names:
        wrong = _wrong(name)
        if wrong is not None:
            raise _invalid(text, f"has the name {_shown(name)}, which {wrong}")
    return TreePath(names)


def twin_key(name: str) -> str:
    """The same for names that people, or other file systems, take for one another: no folder has two of them."""
    if name.isascii():
        return name.lower()
    folded = unicodedata.normalize("NFKC", name).casefold()
    return unicodedata.normalize("NFKC", folded.translate(dict.fromkeys(map(ord, _JOINERS))))


@lru_cache(maxsize=4096)  # folders are named again and again
def _wrong(name: str) -> str | None:
    """What is wrong with a name; None where nothing is."""
    if _PLAIN.fullmatch(name) and len(name) <= LONGEST_NAME and not _DEVICES.fullmatch(name):
        return None  # most are, and to look at all readings of one takes 20 us
    if len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
        return f"has more than {LONGEST_NAME} bytes"
    seen = name[:1] + name[1:-1].translate(dict.fromkeys(map(ord, _JOINERS))) + name[-1:]
    unseen = next((letter for letter in seen if unicodedata.category(letter) in _UNSEEN), None)
    if unseen is not None:
        return f"has U+{ord(unseen):04X}, which nobody sees"
    for reading in _readings(name):
        if not reading.strip(". "):
            return "leads elsewhere"  # as `.` and `..` do, and to some systems more dots
        if _SEPARATORS & set(reading):
            return "has a separator in it"
        if "\0" in reading:
            return "has a zero in it"
    if name != name.strip() or name.endswith("."):
        return "begins or ends with what other systems leave out"
    if _DEVICES.fullmatch(name) or _DRIVE.match(name):
        return "is a device elsewhere"
    return None


def _readings(name: str) -> set[str]:
    """What others may take a name for: decoded once and again, and with letters that stand for others replaced."""
    readings = {name}
    for _ in range(3):
        more = {unquote(each, errors="replace") for each in readings}
        more |= {unicodedata.normalize("NFKC", each) for each in readings | more}
        if more <= readings:
            break
        readings |= more
    return readings


def _shown(name: str) -> str:
    """A name as an error may show it."""
    text = ascii(name)
    return text if len(text) <= 80 else text[:77] + "...'"


def _invalid(text: str, wrong: str, remedy: str | None = None) -> Invalid:
    return Invalid(f"the path {_shown(text)} {wrong}", field="path", remedy=remedy)
