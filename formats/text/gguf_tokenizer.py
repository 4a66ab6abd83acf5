"""Builds a tokenizer from the metadata of a GGUF file, its `tokenizer.ggml.*` keys.

The keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer. Two kinds:

- `gpt2`: byte-level BPE with a list of merges; how text is cut before merging is named by
`tokenizer.ggml.pre`.
- `llama`: SentencePiece BPE. It has scores instead of merges and always joins the neighbours whose union
scores best,
  so every way to put a piece together from two others is a merge, ranked by the score of the piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from formats.text.tokenizer_definition import END_OF_TURN, TokenizerDefinition, ends_of_turn, library_errors
from microkernel.errors import DataLoss, Invalid

__all__ = ["read_gguf"]

PREFIX = "tokenizer.ggml."
SOURCE = "the GGUF file's metadata"
SPACE = "▁"
MAX_TOKEN = 1024  # characters; merges are looked for at every place of a token, which takes the square of its length


class _TokenType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def read_gguf(metadata: Mapping[str, Any]) -> TokenizerDefinition:
    """The definition in `metadata` (keys with their prefix; arrays as lists).

    Raises `Invalid` for a kind or cut that is not known, `DataLoss` for metadata that contradicts itself.
    """
    tokens = _array(metadata, "tokens", str)
    for place, text in enumerate(tokens):
        if len(text) > MAX_TOKEN:
            raise Invalid(f"{PREFIX}tokens[{place}] has {len(text)} characters, allowed are {MAX_TOKEN}")
    types = _types_of(metadata, len(tokens))
    bos_id, eos_id, eot_id, eom_id, unk_id, pad_id = (
        _token_id(metadata, f"{name}_token_id", len(tokens))
        for name in ("bos", "eos", "eot", "eom", "unknown", "padding")
    )
    for token in (bos_id, eos_id, eot_id, eom_id):  # older files leave their type open
        if token is not None:
            types[token] = _TokenType.CONTROL
    for token, text in enumerate(tokens):
        if text in END_OF_TURN:
            types[token] = _TokenType.CONTROL

    kind = _scalar(metadata, "model", str, None)
    if kind not in {"gpt2", "llama"}:
        raise Invalid(f"{PREFIX}model is {kind!r}, supported are 'gpt2' and 'llama'", remedy="use another model")
    with library_errors(f"{SOURCE} has no working tokenizer"):
        if kind == "gpt2":
            library = _build_byte_level(metadata, tokens)
        else:
            library = _build_sentencepiece(metadata, tokens, types, unk_id)
        _add_tokens(library, tokens, types)

    named = {"bos_token": bos_id, "eos_token": eos_id, "unk_token": unk_id, "pad_token": pad_id}
    return TokenizerDefinition(
        library=library,
        source=SOURCE,
        bos_id=bos_id,
        eos_ids=ends_of_turn(library, (eos_id, eot_id, eom_id)),
        # without a word on it, SentencePiece models begin with BOS and byte-level ones do not
        add_bos=_scalar(metadata, "add_bos_token", bool, kind == "llama") and bos_id is not None,
        chat_template=_template_of(metadata),
        tokens={name: tokens[token] for name, token in named.items() if token is not None},
    )


def _build_byte_level(metadata: Mapping[str, Any], tokens: list[str]) -> tokenizers.Tokenizer:
    pre = _scalar(metadata, "pre", str, "default")
    cut = _CUTS.get(pre)
    if cut is None:
        raise Invalid(
            f"{PREFIX}pre is {pre!r}: how it cuts text is not known; known are {', '.join(sorted(_CUTS))}",
            remedy="use another model, or the same one as a Hugging Face folder",
        )
    merges = []
    for place, merge in enumerate(_array(metadata, "merges", str)):
        left, _, right = merge.partition(" ")
        if not left or not right:
            raise DataLoss(f"{PREFIX}merges[{place}] is {merge[:50]!r}, not two tokens with a space between")
        merges.append((left, right))
    # Llama 3 takes a word that is a token as it is, whatever the merges say.
    model = models.BPE(vocab=_first_ids(tokens), merges=merges, ignore_merges=pre in _TAKES_WORDS)
    library = tokenizers.Tokenizer(model)
    if pre in _NORMALISED:
        library.normalizer = normalizers.NFC()
    library.pre_tokenizer = cut()
    library.decoder = decoders.ByteLevel()
    return library


def _build_sentencepiece(
    metadata: Mapping[str, Any], tokens: list[str], types: list[int], unk_id: int | None
) -> tokenizers.Tokenizer:
    scores = _array(metadata, "scores", float)
    if len(scores) != len(tokens):
        raise DataLoss(f"{PREFIX}scores has {len(scores)} entries for {len(tokens)} tokens")
    if not all(map(math.isfinite, scores)):
        raise DataLoss(f"{PREFIX}scores has entries that are not finite")
    vocab = _first_ids(tokens)
    library = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges_of(tokens, types, scores, vocab),
            unk_token=None if unk_id is None else tokens[unk_id],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE)]
    undo: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if _scalar(metadata, "add_space_prefix", bool, default=True):
        steps.insert(0, normalizers.Prepend(SPACE))
        undo.append(decoders.Strip(" ", 1, 0))
    library.normalizer = normalizers.Sequence(steps)
    library.decoder = decoders.Sequence(undo)
    return library


def _merges_of(
    tokens: list[str], types: list[int], scores: list[float], vocab: dict[str, int]
) -> list[tuple[str, str]]:
    pieces = {_TokenType.NORMAL, _TokenType.USER_DEFINED}
    mergeable = [token for token in vocab.values() if types[token] in pieces]
    best_first = sorted(mergeable, key=lambda token: -scores[token])
    usable = {tokens[token] for token in best_first}
    merges = []
    for token in best_first:
        piece = tokens[token]
        halves = ((piece[:place], piece[place:]) for place in range(1, len(piece)))
        pairs = [(left, right) for left, right in halves if left in usable and right in usable]
        merges += sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    return merges


def _add_tokens(library: tokenizers.Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Tell the library which tokens are found in a text before it is cut."""
    special, literal = [], []
    for text, kind in zip(tokens, types, strict=True):
        if not text:
            continue
        if kind in {_TokenType.CONTROL, _TokenType.UNKNOWN}:
            special.append(AddedToken(text, special=True, normalized=False))
        elif kind == _TokenType.USER_DEFINED and SPACE not in text:  # with spaces: merged as other pieces are
            literal.append(AddedToken(text, special=False, normalized=False))
    library.add_special_tokens(special)
    library.add_tokens(literal)


def _first_ids(tokens: list[str]) -> dict[str, int]:
    """Each text's first id: some files pad their vocabulary with the same text again."""
    ids: dict[str, int] = {}
    for token, text in enumerate(tokens):
        ids.setdefault(text, token)
    return ids


def _types_of(metadata: Mapping[str, Any], count: int) -> list[int]:
    if f"{PREFIX}token_type" not in metadata:
        return [_TokenType.NORMAL] * count
    types = _array(metadata, "token_type", int)
    if len(types) != count:
        raise DataLoss(f"{PREFIX}token_type has {len(types)} entries for {count} tokens")
    return types


def _template_of(metadata: Mapping[str, Any]) -> str | None:
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise DataLoss(f"tokenizer.chat_template is {type(template).__name__}, not str")
    return template


def _array(metadata: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    values = metadata.get(PREFIX + name)
    if not isinstance(values, (list, tuple)) or not values:
        raise DataLoss(f"{SOURCE} has no list {PREFIX}{name}")
    allowed = (float, int) if kind is float else kind
    for place, value in enumerate(values):
        if not isinstance(value, allowed):
            raise DataLoss(f"{PREFIX}{name}[{place}] is {type(value).__name__}, not {kind.__name__}")
    return list(values)


def _scalar(metadata: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = metadata.get(PREFIX + name, default)
    if not isinstance(value, kind) and value is not default:
        raise DataLoss(f"{PREFIX}{name} is {type(value).__name__}, not {kind.__name__}")
    return value


def _token_id(metadata: Mapping[str, Any], name: str, count: int) -> int | None:
    token = _scalar(metadata, name, int, None)
    if token is not None and not 0 <= token < count:
        raise DataLoss(f"{PREFIX}{name} is {token}, but there are {count} tokens")
    return None if token is None else int(token)


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _by(*patterns: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    """Cuts by each of `patterns` in turn, as the `tokenizer.json` of these models do; then bytes."""

    def build() -> pre_tokenizers.PreTokenizer:
        cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
        return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    return build


_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_llama3 = _by(_WORDS + r"|\p{N}{1,3}" + _TAIL)
_qwen2 = _by(_WORDS + r"|\p{N}" + _TAIL)
_CUTS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _gpt2,
    "smollm": _single_digits,
    "starcoder": _single_digits,
    "llama-bpe": _llama3,
    "llama3": _llama3,
    "llama-v3": _llama3,
    "qwen2": _qwen2,
    "deepseek-r1-qwen": _qwen2,
    "tekken": _by(_TEKKEN),
    "default": _by(r"[\p{P}\$\+<=>\^~\|]+", _GPT2_WORDS, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
_TAKES_WORDS = frozenset({"llama-bpe", "llama3", "llama-v3", "tekken"})
_NORMALISED = frozenset({"qwen2"})
