"""An adapter as a GGUF file, as llama.cpp's `convert_lora_to_gguf.py` writes it.

`general.type` is adapter and `adapter.type` lora. The tensor `blk.0.attn_q.weight` of a model has `….lora_a` [rank,
inputs] and `….lora_b` [outputs, rank]; rotary rows are in the same order as in a model's file of that architecture.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from numpy.typing import NDArray

from formats.checkpoint.adapter import TARGETS, Adapter, Raw, check_size, made_of, shortened
from formats.checkpoint.architecture import DecoderConfig, number
from formats.checkpoint.checkpoint import Stored
from formats.checkpoint.families import FAMILIES
from formats.checkpoint.gguf_header import Header, TensorSpan, read_header
from microkernel.errors import DataLoss, Invalid

__all__ = ["read_gguf_adapter"]

NAME = re.compile(rf"(blk\.(?:0|[1-9][0-9]{{0,3}})\.(?:{'|'.join(TARGETS)})\.weight)\.lora_([ab])")
KEYS = {"adapter.type", "adapter.lora.alpha", "adapter.lora.task_name", "adapter.lora.prompt_prefix"}
FILE_NAMES = {"mistral": "llama"}  # what GGUF calls an architecture where it is not our name


def read_gguf_adapter(path: Path, config: DecoderConfig, max_rank: int) -> Adapter:
    """Read the file; raises `Invalid`, `DataLoss` or `OSError`."""
    where = path.name
    check_size(where, path.stat().st_size, config, max_rank)
    header = read_header(path)
    _check(where, header, config)
    data = np.fromfile(path, dtype=np.uint8)
    parts: dict[str, dict[str, NDArray[np.float32]]] = {}
    for name, span in header.tensors.items():
        match = NAME.fullmatch(name)
        if match is None:
            raise Invalid(f"{where}: the tensor {shortened(name)} is none that an adapter may have here")
        parts.setdefault(match[1], {})[match[2]] = _floats(where, span, data)
    alpha = float(number(header.metadata, "adapter.lora.alpha", where, 0.0))
    raw: dict[str, Raw] = {}
    for name, pair in parts.items():
        if len(pair) < 2:
            raise DataLoss(f"{where}: {name} has only lora_{next(iter(pair))}: the file is incomplete")
        # As llama.cpp has it: without an alpha, the product is added as it is.
        raw[name] = Raw(pair["a"], pair["b"], alpha / pair["a"].shape[0] if alpha else 1.0)
    return made_of(where, raw, config, max_rank, halves=FAMILIES[_file_name(config)].gguf_halves)


def _file_name(config: DecoderConfig) -> str:
    """What files call the architecture."""
    return FILE_NAMES.get(config.architecture, config.architecture)


def _check(where: str, header: Header, config: DecoderConfig) -> None:
    metadata = header.metadata
    if metadata.get("general.type") != "adapter":
        raise Invalid(f"{where} is no adapter: its general.type is {str(metadata.get('general.type'))[:40]!r}")
    if metadata.get("adapter.type") != "lora":
        raise Invalid(f"{where}: adapters of the type {str(metadata.get('adapter.type'))[:40]!r} are not computed here")
    for key in metadata:
        if key.startswith("adapter.") and key not in KEYS:
            raise Invalid(f"{where}: '{shortened(key)}' is not computed here", field=shortened(key))
    expected = _file_name(config)
    architecture = metadata.get("general.architecture")
    if architecture != expected:
        raise Invalid(f"{where} is an adapter for {str(architecture)[:40]!r}, and the model is a {expected!r}")


def _floats(where: str, span: TensorSpan, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    if len(span.shape) != 2:
        raise Invalid(f"{where}: tensor {span.name} has {len(span.shape)} dimensions, not 2")
    if span.end > len(data):
        raise DataLoss(f"{where}: the file was cut while it was read")
    block, block_bytes = GGML_QUANT_SIZES[span.kind]
    rows, columns = span.shape
    stored = Stored(span.kind.name, data[span.start : span.end].reshape(rows, columns // block * block_bytes))
    try:
        with np.errstate(all="ignore"):  # damaged scales overflow: told afterwards, with the matrix's name
            return stored.floats()
    except NotImplementedError as error:
        raise Invalid(f"{where}: tensor {span.name} has the type {span.kind.name}, which cannot be read") from error
