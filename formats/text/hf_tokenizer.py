"""Reads the tokenizer of a Hugging Face folder: `tokenizer.json` and the configuration files beside it.

What belongs where is said in https://huggingface.co/docs/transformers/main_classes/tokenizer; end-of-turn
tokens come
from `generation_config.json` too, chat templates from `chat_template.jinja` before `tokenizer_config.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from formats.text.tokenizer_definition import END_OF_TURN, TokenizerDefinition, ends_of_turn, library_errors
from formats.text.tokenizer_steps import check_steps
from microkernel.errors import DataLoss, Invalid, NotFound

__all__ = ["read_folder"]

MAX_BYTES = 256 << 20  # the largest published tokenizer.json has 33 MB


def read_folder(folder: Path) -> TokenizerDefinition:
    """The definition in `folder`. Raises `NotFound`, `Invalid` or `DataLoss` that names the file."""
    path = folder / "tokenizer.json"
    library = _read_library(path)
    config = _read_object(folder / "tokenizer_config.json")
    named = _read_object(folder / "special_tokens_map.json") | config
    tokens = {name: text for name in _NAMES if (text := _text_of(named.get(name))) is not None}
    extra = named.get("additional_special_tokens")
    extra = extra if isinstance(extra, list) else []
    listed = [text for entry in extra if (text := _text_of(entry)) is not None]
    _mark_special(library, {*tokens.values(), *listed, *END_OF_TURN})

    bos_id = library.token_to_id(tokens["bos_token"]) if "bos_token" in tokens else None
    eos_id = library.token_to_id(tokens["eos_token"]) if "eos_token" in tokens else None
    more = [
        token
        for name in ("generation_config.json", "config.json")
        for token in _ids_of(_read_object(folder / name).get("eos_token_id"))
    ]
    add_bos = config.get("add_bos_token")
    if not isinstance(add_bos, bool):
        with library_errors(f"{path} does not work"):
            add_bos = bos_id is not None and library.encode("").ids[:1] == [bos_id]
    return TokenizerDefinition(
        library=library,
        source=str(path),
        bos_id=bos_id,
        eos_ids=ends_of_turn(library, [eos_id, *more]),
        add_bos=add_bos,
        chat_template=_read_template(folder, config),
        tokens=tokens,
    )


_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def _read_library(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise NotFound(
            f"{path} does not exist",
            remedy="convert the tokenizer to tokenizer.json, or use a GGUF file, which has it inside",
        )
    text = _read_text(path)
    check_steps(text, path)
    with library_errors(f"{path} is not a tokenizer"):
        library = tokenizers.Tokenizer.from_str(text)
    library.no_truncation()
    library.no_padding()
    return library


def _mark_special(library: tokenizers.Tokenizer, texts: set[str]) -> None:
    """Make control tokens of those that only the configuration, or their name, calls so; ids stay what they are."""
    special = {entry.content for entry in library.get_added_tokens_decoder().values() if entry.special}
    missing = [text for text in sorted(texts) if text not in special and library.token_to_id(text) is not None]
    library.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in missing])


def _read_template(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return _read_text(file)
    template = _read_object(folder / "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(template, list):  # several by name: [{"name": "default", "template": …}, …]
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default", next(iter(named.values()), None))
    return template if isinstance(template, str) else None


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(_read_text(path), type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise DataLoss(f"{path} is not a JSON object: {_one_line(error)}") from error


def _read_text(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise Invalid(f"{path} has {size} bytes, allowed are {MAX_BYTES}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataLoss(f"{path} is not UTF-8 text: byte {error.start}") from error
    except OSError as error:
        raise DataLoss(f"{path} cannot be read: {error.strerror}") from error


def _text_of(entry: Any) -> str | None:
    """A token as files write it: its text, or an object with `content`."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) and text else None


def _ids_of(entry: Any) -> list[int]:
    ids = entry if isinstance(entry, list) else [entry]
    return [token for token in ids if isinstance(token, int) and not isinstance(token, bool) and token >= 0]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
