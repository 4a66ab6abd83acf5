"""An encoder's folder, opened as far as its size is known: its shape, its tokens, and where each weight lies."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from formats.checkpoint.architecture import Unsupported
from formats.checkpoint.safetensors_files import FLOATS, FileTensor, read_tensors
from microkernel.errors import DataLoss, Invalid
from services.inference.encoder.config import PREFIXES, EncoderConfig, expected_shapes, read_config
from services.inference.encoder.tokens import TextTokens, open_tokens

__all__ = ["EncoderFolder", "open_encoder"]


class EncoderFolder(msgspec.Struct, frozen=True):
    """An encoder in the Hugging Face layout. Nothing that is read from it refers to the files afterwards."""

    path: Path
    config: EncoderConfig
    tokens: TextTokens
    tensors: dict[str, FileTensor]
    prefix: str  # of all names in the files

    @property
    def parameters(self) -> int:
        """How many weights are read."""
        return sum(math.prod(shape) for shape in expected_shapes(self.config).values())

    @property
    def kind(self) -> str:
        """The type that most of the weights are stored in: F32, F16 or BF16."""
        kinds = [tensor.dtype for tensor in self.tensors.values()]
        return max(sorted(set(kinds)), key=kinds.count)

    def weight(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Read one tensor as `dtype`. Raises `DataLoss` where it cannot be read or holds no finite numbers."""
        file = self.tensors[name].file
        try:
            with safe_open(file, framework="pt") as tensors:
                values: torch.Tensor = tensors.get_tensor(self.prefix + name).to(dtype, copy=True)
        except SafetensorError as error:
            raise DataLoss(f"{file.name}: tensor {name} cannot be read: {error}") from error
        if not bool(torch.isfinite(values.sum(dtype=torch.float64))):
            raise DataLoss(f"{file.name}: tensor {name} holds numbers that are not finite: the file is damaged")
        return values


def open_encoder(path: Path) -> EncoderFolder:
    """Read configuration, headers and tokenizer. Raises `Unsupported`, `Invalid` or `DataLoss`."""
    if not path.is_dir():
        raise Unsupported(f"{path.name} is no encoder", remedy="use a folder with config.json and *.safetensors")
    config = read_config(path)
    found = read_tensors(path)
    first = next(iter(expected_shapes(config)))
    prefix = next((prefix for prefix in PREFIXES if prefix + first in found), "")
    tensors: dict[str, FileTensor] = {}
    for name, shape in expected_shapes(config).items():
        tensor = found.get(prefix + name)
        if tensor is None:
            raise DataLoss(f"{path.name}: tensor {name} is missing", remedy="pull the model again")
        if tensor.shape != shape:
            raise Invalid(f"{path.name}: tensor {name} has the shape {list(tensor.shape)}, not {list(shape)}")
        if tensor.dtype not in FLOATS:
            raise Invalid(f"{path.name}: tensor {name} has the type {tensor.dtype}, not a float")
        tensors[name] = tensor
    tokens = open_tokens(path, config.longest)
    if tokens.vocab_size > config.vocab_size:
        raise Invalid(
            f"{path.name}: the tokenizer has {tokens.vocab_size} tokens, and the weights are for {config.vocab_size}"
        )
    return EncoderFolder(path, config, tokens, tensors, prefix)
