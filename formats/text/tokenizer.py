"""Text to tokens and back, over the library `tokenizers`: one face for GGUF metadata and Hugging Face
folders.

Text that users send is encoded with control tokens *not* parsed: "<|im_end|>" in a message is ten ordinary
characters. Only the parts that a chat template wrote are parsed; see `encode_parts`. Tokens that the model's
maker did not mark as control (`special`), such as runs of spaces, are parsed everywhere, as in training.

Decoding works on bytes: a token is a byte string (byte-level BPE: the byte alphabet of GPT-2; SentencePiece:
`▁` is a space, `<0xE2>` a byte), and a text is the UTF-8 of the concatenation. So decoding in pieces equals
decoding at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from formats.text.gguf_tokenizer import read_gguf
from formats.text.hf_tokenizer import read_folder
from formats.text.tokenizer_definition import TokenizerDefinition, library_errors
from microkernel.errors import Invalid

__all__ = ["Tokenizer", "open_tokenizer"]

# Encoding goes through the library's call for batches, the only one that lets go of Python's lock. Its threads are not
# wanted: we bring our own, and a pool beside torch's slows both.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SPACE = "▁"  # how SentencePiece writes a space


def open_tokenizer(source: Path | Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, or of GGUF metadata (its `tokenizer.*` keys with their values).

    Raises `Invalid` for a kind that is not known, `DataLoss` for damaged files, each in one line that names
    the file or key. Takes about a second for 150,000 tokens: keep it off the loop.
    """
    return Tokenizer(read_folder(source) if isinstance(source, Path) else read_gguf(source))


class Tokenizer:
    """A model's tokenizer. Made by `open_tokenizer`; safe to use from several threads."""

    def __init__(self, definition: TokenizerDefinition) -> None:
        self._library = definition.library
        self._plain = tokenizers.Tokenizer.from_str(definition.library.to_str())
        self._plain.encode_special_tokens = True  # control tokens are ordinary text to this one
        added = definition.library.get_added_tokens_decoder()
        self._literal = {token: entry.content for token, entry in added.items()}
        self._byte_level, self._strips_space = _decoding(definition)
        self._bytes: dict[int, bytes] = {}
        self.special_tokens: dict[str, int] = {entry.content: token for token, entry in added.items() if entry.special}
        self.special_ids = frozenset(self.special_tokens.values())
        self.bos_id = definition.bos_id
        self.eos_ids = definition.eos_ids
        self.add_bos = definition.add_bos
        self.chat_template = definition.chat_template
        self.template_tokens = definition.tokens
        vocabulary = definition.library.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocabulary.values(), default=-1)
        # Characters of text that one token can stand for: its own name has one for each byte or each character.
        self.longest_token = max(map(len, vocabulary), default=0)

    @property
    def strips_space(self) -> bool:
        """Whether the encoder puts a space before a text, which decoding a whole text takes off again."""
        return self._strips_space

    def encode(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]:
        """The ids of `text`; raises `Invalid` if it has lone surrogates, which no encoding of Unicode has.

        `parse_special` makes control tokens of their names: for text that we wrote, never for text that users
        sent. `add_bos` puts the model's first token before it, if it has one and the text does not begin with
        it.
        """
        return self.encode_parts([(text, parse_special)], add_bos=add_bos)

    def encode_parts(self, parts: Iterable[tuple[str, bool]], *, add_bos: bool) -> list[int]:
        """The ids of the concatenation of `parts` (text, parse_special).

        Control tokens are parsed within the parts that say so; text between them is encoded in one go across
        the borders of parts, so that a prompt put together of parts has the ids that it has as a whole.
        """
        filled = (part for part in parts if part[0])
        joined = [("".join(text for text, _ in run), parse) for parse, run in groupby(filled, key=itemgetter(1))]
        if len(joined) > 1:
            ids = self._encode_runs(joined)
        else:
            ids = [token for text, parse in joined for token in _encode(self._library if parse else self._plain, text)]
        if add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def decode(self, ids: Sequence[int], *, continues: bool = False, skip_special: bool = True) -> str:
        """The text of `ids`; what is not valid UTF-8 becomes U+FFFD, ids that are not known are left out.

        `continues` says that text stands before it, so that a first space is kept (see `strips_space`).
        """
        shown = [token for token in ids if not (skip_special and token in self.special_ids)]
        raw = b"".join(map(self.token_bytes, shown))
        if self._strips_space and not continues:
            raw = raw.removeprefix(b" ")
        return raw.decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes of `token`, which may end inside a character; of a control token its name."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._make_bytes(token)
        return known

    def _make_bytes(self, token: int) -> bytes:
        literal = self._literal.get(token)
        if literal is not None:
            return literal.replace(SPACE, " " if not self._byte_level else SPACE).encode()
        if not 0 <= token < self.vocab_size:
            return b""
        piece = self._library.id_to_token(token)
        if piece is None:
            return b""
        if self._byte_level:
            # a character outside the alphabet stands for itself
            return b"".join(_BYTE_OF.get(character) or character.encode() for character in piece)
        byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()

    def _encode_runs(self, parts: Sequence[tuple[str, bool]]) -> list[int]:
        """`parts` of both kinds: cut at control tokens where they are parsed, encode what lies between."""
        runs: list[list[str] | int] = []

        def add_text(text: str) -> None:
            if not text:
                return
            if not runs or isinstance(runs[-1], int):
                runs.append([])
            last = runs[-1]
            assert isinstance(last, list)
            last.append(text)

        for text, parse in parts:
            end = 0
            for match in self._special_pattern.finditer(text) if parse else ():
                add_text(text[end : match.start()])
                runs.append(self.special_tokens[match["name"]])
                end = match.end()
            add_text(text[end:])

        ids: list[int] = []
        for run in runs:
            if isinstance(run, int):
                ids.append(run)
            else:
                ids += _encode(self._inner if ids else self._plain, "".join(run))
        return ids

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        """Any control token, longest first, with the space around it that its definition takes along."""
        if not self.special_tokens:
            return re.compile(r"(?P<name>(?!))")  # matches nothing
        takes_left, takes_right = [], []
        for entry in self._library.get_added_tokens_decoder().values():
            if entry.special and entry.lstrip:
                takes_left.append(entry.content)
            if entry.special and entry.rstrip:
                takes_right.append(entry.content)
        left = rf"(?:\s*(?={_any_of(takes_left)}))?" if takes_left else ""
        right = rf"(?:(?<={')|(?<='.join(map(re.escape, takes_right))})\s*)?" if takes_right else ""
        return re.compile(rf"{left}(?P<name>{_any_of(self.special_tokens)}){right}")

    @cached_property
    def _inner(self) -> tokenizers.Tokenizer:
        """As `_plain`, for text behind a token: without the space that some put before a first word."""
        definition = msgspec.json.decode(self._plain.to_str())
        changed = False
        for step in _steps(definition.get("pre_tokenizer"), "pretokenizers"):
            if step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first":
                step["prepend_scheme"] = "never"
                changed = True
        if not changed:
            return self._plain
        inner = tokenizers.Tokenizer.from_str(msgspec.json.encode(definition).decode())
        inner.encode_special_tokens = True
        return inner


def _encode(library: tokenizers.Tokenizer, text: str) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"character {error.start}"
        raise Invalid(f"the text has a lone surrogate at {where}: it is not valid Unicode") from error
    with library_errors("the model's tokenizer failed"):
        return list(library.encode_batch_fast([text], add_special_tokens=False)[0].ids)


def _any_of(texts: Iterable[str]) -> str:
    return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))


def _decoding(definition: TokenizerDefinition) -> tuple[bool, bool]:
    """(byte-level or else SentencePiece, strips a first space), read from the library's decoder."""
    decoder = definition.library.decoder
    state = {} if decoder is None else msgspec.json.decode(decoder.__getstate__())
    steps = _steps(state, "decoders")
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return True, False
    if not kinds & {"Metaspace", "ByteFallback", "Replace"}:
        named = ", ".join(sorted(map(str, kinds))) or "none"
        raise Invalid(f"{definition.source}: its decoder ({named}) is neither byte-level nor SentencePiece")
    strips = any(
        (step.get("type") == "Strip" and step.get("content") == " " and step.get("start", 0) > 0)
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )
    return False, strips


def _steps(component: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a component of the library's JSON, sequences unfolded."""
    if not component:
        return []
    if component.get("type") != "Sequence":
        return [component]
    return [step for inner in component.get(name, []) for step in _steps(inner, name)]


def _byte_alphabet() -> dict[str, bytes]:
    """GPT-2's alphabet: printable bytes of Latin-1 are themselves, the others the characters from 256 on."""
    spans = (("!", "~"), ("¡", "¬"), ("®", "ÿ"))
    printable = {byte for first, last in spans for byte in range(ord(first), ord(last) + 1)}
    hidden = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    return alphabet | {chr(256 + place): bytes([byte]) for place, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()
