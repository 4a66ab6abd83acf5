"""What makes a set of files a model, read before it enters the store: headers that fit the file, and nothing missing.

Formats: GGUF (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), and the Hugging Face layout: `config.json`
with safetensors files (https://huggingface.co/docs/safetensors). An adapter is a GGUF file that says so, or a folder as
PEFT saves it. Pickled weights are never taken.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from microkernel.errors import DataLoss, Invalid
from services.models.disk import readable
from services.models.gguf_header import read_gguf_header
from services.models.names import is_file_name

__all__ = ["NESTED", "Description", "describe", "is_adapter_folder", "is_model_folder", "is_wanted", "one_gguf"]

WANTED = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "tokenizer*",
    "merges.txt",
    "vocab.txt",
    "LICENSE*",
    "README.md",
)
UNWANTED = (
    "*.bin",
    "*.pt",
    "*.pth",
    "*.pkl",
    "*.py",
    "consolidated*",  # the same weights once more, in the names of their maker
    "training_args*",
    "optimizer*",
    "trainer_state*",
    "*.incomplete",
)
NESTED = frozenset({"1_Pooling/config.json"})  # what sentence-transformers keeps in a folder of its own
JSON_LIMIT = 64 << 20  # bytes
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
HEADER_LIMIT = 100_000_000  # the safetensors format's own limit
SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


class Description(msgspec.Struct, frozen=True):
    """What a model's files say of themselves: `format` is gguf or safetensors, `kind` model or adapter."""

    format: str
    architecture: str | None = None
    license: str | None = None
    kind: str = "model"


def describe(files: Mapping[str, Path]) -> Description:
    """Read the headers of a model's files (name → where it lies); `DataLoss` or `Invalid` names what is wrong."""
    ggufs = [name for name in files if name.lower().endswith(".gguf")]
    if ggufs:
        header = read_gguf_header(files[ggufs[0]], shown=ggufs[0])
        kind = "adapter" if header.type == "adapter" else "model"
        return Description("gguf", header.architecture, header.license, kind)
    if is_adapter_folder(files):
        _json(files[ADAPTER[0]], ADAPTER[0])
        _check_safetensors(files[ADAPTER[1]], ADAPTER[1])
        return Description("safetensors", None, _license_of_card(files.get("README.md")), "adapter")
    if not is_model_folder(files):
        listed = ", ".join(sorted(files)) or "an empty folder"
        raise Invalid(f"no model in {listed}: neither .gguf nor config.json with safetensors, nor an adapter")
    config = _json(files["config.json"], "config.json")
    for name, path in files.items():
        if name.endswith(".safetensors"):
            _check_safetensors(path, name)
    _check_shards(files)
    architecture = config.get("model_type")
    return Description(
        "safetensors",
        architecture if isinstance(architecture, str) else None,
        _license_of_card(files.get("README.md")),
    )


def is_model_folder(names: Iterable[str]) -> bool:
    """Whether these files make up a model in the Hugging Face layout."""
    names = set(names)
    return "config.json" in names and any(name.endswith(".safetensors") for name in names)


def is_adapter_folder(names: Iterable[str]) -> bool:
    """Whether these files are an adapter as PEFT saves it, and no model beside it."""
    names = set(names)
    return names.issuperset(ADAPTER) and not any(name.endswith(".safetensors") for name in names - set(ADAPTER))


def is_wanted(name: str) -> bool:
    """Whether a file of a folder or repository belongs to a model that we can run, and its name is safe.

    Names are relative to the model's folder. Of what lies deeper, only the files in `NESTED` are wanted.
    """
    if name in NESTED:
        return True
    if not is_file_name(name):
        return False
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in UNWANTED):
        return False
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in WANTED)


def one_gguf(names: Iterable[str], file: str | None, *, where: str, ref: str) -> str | None:
    """The one GGUF file among `names` that a ref means: `file`, or the only one there; None where there is none.

    Raises `Invalid` with a list where a choice is left, or where `file` is not among them.
    """
    ggufs = sorted(name for name in names if name.lower().endswith(".gguf"))
    chosen = [name for name in ggufs if file in (name, name.rsplit("/", 1)[-1])] if file else ggufs
    listed = ", ".join(name.rsplit("/", 1)[-1] for name in ggufs[:20]) + (" …" if len(ggufs) > 20 else "")
    if file and not chosen:
        raise Invalid(f"{where} has no file '{file}'", remedy=f"it has: {listed or 'no .gguf file'}", field="ref")
    if len(chosen) > 1:
        raise Invalid(f"{where} has {len(ggufs)} .gguf files: {listed}", remedy=f"name one: {ref}:FILE", field="ref")
    if chosen and SPLIT.search(chosen[0]):
        raise Invalid(
            f"{chosen[0]} is one part of a split GGUF file",
            remedy="merge the parts first: gguf-split --merge",
        )
    return chosen[0] if chosen else None


def _check_shards(files: Mapping[str, Path]) -> None:
    index = "model.safetensors.index.json"
    if index not in files:
        return
    shards = _json(files[index], index).get("weight_map")
    if not isinstance(shards, dict):
        raise DataLoss(f"{index} has no weight map")
    missing = sorted({str(shard) for shard in shards.values()} - set(files))
    if missing:
        raise DataLoss(f"{len(missing)} files that {index} names are missing: {', '.join(missing[:5])}")


def _check_safetensors(path: Path, name: str) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise DataLoss(f"{name} is no safetensors file, or was cut off: its header is said to have {length} bytes")
        header = _parsed(file.read(length), name)
    ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__" and _has_offsets(entry)]
    end = 8 + length + max(ends, default=0)
    if end != size:
        raise DataLoss(f"{name} was cut off or added to: it has {readable(size)}, its header tells of {end} bytes")


def _has_offsets(entry: Any) -> bool:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return isinstance(offsets, list) and len(offsets) == 2 and isinstance(offsets[1], int)


def _json(path: Path, name: str) -> dict[str, Any]:
    if path.stat().st_size > JSON_LIMIT:
        raise Invalid(f"{name} has {readable(path.stat().st_size)}, over the limit of {readable(JSON_LIMIT)}")
    return _parsed(path.read_bytes(), name)


def _parsed(content: bytes, name: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataLoss(f"{name} is damaged: {error}") from error


def _license_of_card(path: Path | None) -> str | None:
    """The license that a model card names in its front matter."""
    if path is None:
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        card = file.read(20_000)
    found = re.search(r"\A---\n(?:.*\n)*?license:[ \t]*([\w.+-]+)[ \t]*\n(?:.*\n)*?---", card)
    return found[1] if found else None
