"""Small tokenizers for tests: GGUF metadata of both kinds, with all 256 bytes and a few merges."""

from __future__ import annotations

from typing import Any

from formats.text.tokenizer import _BYTE_OF

LETTER_OF = {raw[0]: letter for letter, raw in _BYTE_OF.items()}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def byte_level(
    pre: str = "gpt-2", words: tuple[str, ...] = ("he", "ll", "hell", "hello", "Ġhello"), **more: Any
) -> dict[str, Any]:
    """`gpt2` metadata: control tokens 0 to 3, a user-defined one, every byte, and `words` built by merges."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|tool|>"]
    tokens = [*special, "<think>", *(LETTER_OF[byte] for byte in range(256))]
    types = [CONTROL] * len(special) + [USER_DEFINED] + [NORMAL] * 256
    merges = []
    for word in words:
        halves = [(word[:at], word[at:]) for at in range(1, len(word))]
        left, right = next((pair for pair in halves if set(pair) <= set(tokens)), (None, None))
        if left is None:  # build it letter by letter
            for end in range(2, len(word) + 1):
                if word[:end] not in tokens:
                    tokens.append(word[:end])
                    types.append(NORMAL)
                    merges.append(f"{word[: end - 1]} {word[end - 1]}")
            continue
        tokens.append(word)
        types.append(NORMAL)
        merges.append(f"{left} {right}")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **{f"tokenizer.{name}": value for name, value in more.items()},
    }


PIECES = ("▁a", "ab", "▁ab", "ba", "bab", "▁bab", "aa", "aab", "cc", "▁▁", "▁c", "abc", "é", "▁é")


def sentencepiece(**more: Any) -> dict[str, Any]:
    """`llama` metadata: control tokens, every byte, single characters and `PIECES`, best score first."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "c", *PIECES]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (4 + len(PIECES))
    scores = [0.0] * 259 + [-1000.0 - place for place in range(4)] + [-float(place) for place in range(len(PIECES))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **{f"tokenizer.{name}": value for name, value in more.items()},
    }
