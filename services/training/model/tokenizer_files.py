"""The files of a tokenizer beside a model that is written: those of its base, or made of a GGUF file's metadata.

What `formats.text` and transformers read back gives the same tokens, the same ends of a turn, the same chat template
and the same advice on sampling as the base.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from formats.checkpoint.safetensors_writer import write_json
from formats.text.gguf_tokenizer import read_gguf
from formats.text.hf_tokenizer import read_folder
from formats.text.tokenizer_definition import TokenizerDefinition

__all__ = ["define_tokenizer", "write_tokenizer"]

FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json"),
)
SAMPLING = {"temp": "temperature", "penalty_repeat": "repetition_penalty"}  # what GGUF calls otherwise
SAMPLED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def define_tokenizer(source: Path | Mapping[str, Any]) -> TokenizerDefinition:
    """The tokenizer of a checkpoint's `tokenizer_source`; raises as `open_tokenizer` does."""
    return read_folder(source) if isinstance(source, Path) else read_gguf(source)


def write_tokenizer(folder: Path, source: Path | Mapping[str, Any], definition: TokenizerDefinition) -> None:
    """Write the files of `definition`, which was read from `source`, into `folder`. Raises `OSError`."""
    if isinstance(source, Path):
        for name in FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        return
    library = tokenizers.Tokenizer.from_str(definition.library.to_str())
    begins = definition.tokens.get("bos_token")
    if definition.add_bos and begins is not None and definition.bos_id is not None:
        # Only transformers asks for it: a prompt of ours begins with BOS because `add_bos_token` says so.
        library.post_processor = processors.TemplateProcessing(
            single=f"{begins} $A", pair=f"{begins} $A {begins} $B", special_tokens=[(begins, definition.bos_id)]
        )
    library.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": definition.add_bos,
        "clean_up_tokenization_spaces": False,
        **definition.tokens,
    }
    write_json(folder / "tokenizer_config.json", described)
    if definition.chat_template is not None:
        (folder / "chat_template.jinja").write_text(definition.chat_template, encoding="utf-8")
    named = {SAMPLING.get(key, key): value for key, value in _sampling(source).items()}
    advice = {key: named[key] for key in SAMPLED if key in named}
    ends: dict[str, Any] = {} if definition.bos_id is None else {"bos_token_id": definition.bos_id}
    ends |= {"eos_token_id": sorted(definition.eos_ids)} if definition.eos_ids else {}
    write_json(folder / "generation_config.json", ends | ({"do_sample": True, **advice} if advice else {}))


def _sampling(metadata: Mapping[str, Any]) -> dict[str, Any]:
    prefix = "general.sampling."
    return {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
