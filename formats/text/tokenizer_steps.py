"""Checks what a stranger's `tokenizer.json` does to text before the library runs it.

The file is a program of steps (https://huggingface.co/docs/tokenizers/components), and steps can multiply: twenty that
write "aa" for "a" make a million characters of one. Only the steps that language models use are run, few of them, and
only while all together they cannot make text much longer than it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from microkernel.errors import DataLoss, Invalid

__all__ = ["check_steps"]

MAX_STEPS = 16  # of one component, sequences unfolded; published tokenizers have up to seven
MAX_GROWTH = 4  # times; SentencePiece's normalizers write 3 bytes for a space, which is one character for one
MAX_DEPTH = 8
MAX_TEXT = 1024  # characters that a step puts before or into a text once

_NORMALIZERS = frozenset(
    {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend", "Replace", "Strip",
     "StripAccents"}
)  # fmt: skip
_PRE_TOKENIZERS = frozenset(
    {"BertPreTokenizer", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "UnicodeScripts", "Whitespace",
     "WhitespaceSplit"}
)  # fmt: skip
_DECODERS = frozenset({"BPEDecoder", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece"})
_COMPONENTS = (
    ("normalizer", "normalizers", _NORMALIZERS),
    ("pre_tokenizer", "pretokenizers", _PRE_TOKENIZERS),
    ("decoder", "decoders", _DECODERS),
)


class _Definition(msgspec.Struct, frozen=True):
    """The parts of the file that are looked at."""

    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None


def check_steps(text: str, path: Path) -> None:
    """Raise `Invalid` where the definition in `text` has steps that are not run here, `DataLoss` if it is none."""
    try:
        definition = msgspec.json.decode(text, type=_Definition)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DataLoss(f"{path} is not a tokenizer: {' '.join(str(error).split())[:300]}") from error
    growth = 1.0
    for name, inner, known in _COMPONENTS:
        steps = _unfolded(getattr(definition, name), inner, f"{path}: its {name}", 0)
        for count, step in enumerate(steps, 1):
            kind = step.get("type")
            if kind not in known:
                raise Invalid(f"{path}: its {name} has a step of type {str(kind)[:40]!r}, which is not run here")
            if count > MAX_STEPS:
                raise Invalid(f"{path}: its {name} has more than {MAX_STEPS} steps")
            if name != "decoder":
                growth *= _growth(step, path)
    if growth > MAX_GROWTH:
        raise Invalid(f"{path}: its steps make a text up to {growth:g} times as long, allowed is {MAX_GROWTH} times")


def _unfolded(component: Any, inner: str, where: str, depth: int) -> Iterator[dict[str, Any]]:
    if component is None:
        return
    if not isinstance(component, dict) or depth > MAX_DEPTH:
        raise Invalid(f"{where} is not a step, or nested deeper than {MAX_DEPTH}")
    if component.get("type") != "Sequence":
        yield component
        return
    steps = component.get(inner)
    for step in steps if isinstance(steps, list) else ():
        yield from _unfolded(step, inner, where, depth + 1)


def _growth(step: dict[str, Any], path: Path) -> float:
    """How many times as long a text may be after a step."""
    match step.get("type"):
        case "Replace":
            content = _text(step.get("content"), "content", path)
            pattern = step.get("pattern")
            given = pattern.get("String") if isinstance(pattern, dict) else None
            # What a regular expression matches may be one character, or, between two of them, none.
            shortest = len(given) if isinstance(given, str) else 0.5
            return max(1.0, len(content) / shortest) if shortest else float("inf")
        case "Prepend":
            _text(step.get("prepend"), "prepend", path)
    return 1.0


def _text(value: Any, name: str, path: Path) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise Invalid(f"{path}: the {name} of a step is not a text of at most {MAX_TEXT} characters")
    return value
