"""A low-rank adapter (LoRA, https://arxiv.org/abs/2106.09685): for some matrices of a model, `y += b @ (a @ x)`.

Two layouts are read: a folder as PEFT saves it, and a GGUF file as llama.cpp converts it. Names and the order of rows
are those of a `Checkpoint`, so `b` of queries and keys has its rows in rotary pairs. What the files claim is checked
against the model before it is used; what is not a plain low-rank product is refused by name, never ignored.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from formats.checkpoint.architecture import DecoderConfig, expected_shapes
from formats.checkpoint.families import FAMILIES
from microkernel.errors import DataLoss, Invalid, NotFound, Unimplemented

__all__ = ["TARGETS", "Adapter", "LowRank", "Raw", "check_size", "made_of", "open_adapter", "shortened"]

TARGETS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
"""The matrices of a layer that an adapter may add to."""

HEADER_BYTES = 16 << 20  # of a file beside its weights
LARGEST = 3e38  # what bfloat16 still holds


class LowRank(msgspec.Struct, frozen=True):
    """What is added to one matrix: float32, `a` [rank, inputs] and `b` [outputs, rank], the scale within `b`."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]

    @property
    def rank(self) -> int:
        """How many numbers lie between the two."""
        return int(self.a.shape[0])


class Adapter(msgspec.Struct, frozen=True):
    """An adapter as it was read: by the canonical name of a matrix what is added to it.

    `digest` is sha256 of all of it, in hex: equal digests add the same, whatever files they come from.
    """

    digest: str
    weights: dict[str, LowRank]

    @property
    def rank(self) -> int:
        """The largest of its ranks."""
        return max(low.rank for low in self.weights.values())

    @property
    def parameters(self) -> int:
        """How many weights there are."""
        return sum(low.a.size + low.b.size for low in self.weights.values())


class Raw(msgspec.Struct, frozen=True):
    """One matrix's part as a file has it, and the scale that belongs to it."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scale: float


def open_adapter(path: Path, config: DecoderConfig, *, max_rank: int) -> Adapter:
    """Read an adapter for models of the shape `config`: a folder of PEFT's, or a GGUF file.

    Raises `Unimplemented` where transformers computes the model; `NotFound`, `Invalid` (no adapter, not one for this
    model, or one that is not computed here) and `DataLoss`, each naming the file and what is wrong with it. Takes
    neither torch nor a device's thread.
    """
    from formats.checkpoint.gguf_adapter import read_gguf_adapter  # noqa: PLC0415 - they build on this module
    from formats.checkpoint.peft_adapter import read_peft_adapter  # noqa: PLC0415

    if config.architecture not in FAMILIES:
        raise Unimplemented(
            f"adapters beside models of the architecture '{config.architecture}' are not computed yet",
            remedy="merge the adapter into the model",
        )
    try:
        read = read_peft_adapter if path.is_dir() else read_gguf_adapter
        return read(path, config, max_rank)
    except FileNotFoundError as error:
        raise NotFound(f"{error.filename or path}: no such file", field="ref") from error
    except OSError as error:
        raise DataLoss(f"{path.name}: cannot be read: {error.strerror or error}") from error


def check_size(where: str, size: int, config: DecoderConfig, max_rank: int) -> None:
    """Raise `Invalid` for a file larger than any adapter of a rank up to `max_rank` can be; then it may be read."""
    sizes = [sum(shape) for name, shape in expected_shapes(config).items() if name.split(".")[-2] in TARGETS]
    limit = 4 * max_rank * sum(sizes) + HEADER_BYTES
    if size > limit:
        raise Invalid(f"{where} has {size} bytes, and an adapter of rank {max_rank} for this model at most {limit}")


def made_of(where: str, raw: dict[str, Raw], config: DecoderConfig, max_rank: int, *, halves: bool) -> Adapter:
    """The adapter of these parts by canonical name, checked against the model. `halves`: rotary rows are in halves.

    Raises `Invalid` and `DataLoss`; `where` is the file's name.
    """
    if not raw:
        raise Invalid(f"{where} adds nothing to any matrix of a layer")
    shapes = expected_shapes(config)
    weights: dict[str, LowRank] = {}
    for name, part in raw.items():
        if name not in shapes:
            raise Invalid(f"{where} adds to {name}, and the model has {config.layers} layers: it is for another model")
        outputs, inputs = shapes[name]
        rank = part.a.shape[0]
        if not 1 <= rank <= max_rank:
            raise Invalid(f"{where} has the rank {rank} for {name}, and 1 to {max_rank} are taken")
        if part.a.shape != (rank, inputs) or part.b.shape != (outputs, rank):
            raise Invalid(
                f"{where} has {list(part.a.shape)} and {list(part.b.shape)} for {name}, and the model needs "
                f"{[rank, inputs]} and {[outputs, rank]}: it is for another model"
            )
        rows = _in_pairs(name, part.b, config) if halves else part.b
        with np.errstate(all="ignore"):
            b = np.ascontiguousarray(rows * np.float32(part.scale), dtype=np.float32)
        if not all(bool((np.abs(values) < LARGEST).all()) for values in (part.a, b)):
            raise DataLoss(f"{where} holds numbers for {name} that are not finite: the file is damaged")
        weights[name] = LowRank(np.ascontiguousarray(part.a, dtype=np.float32), b)
    return Adapter(_digest(weights), weights)


def _digest(weights: dict[str, LowRank]) -> str:
    digest = hashlib.sha256()
    for name, low in sorted(weights.items()):
        digest.update(f"{name} {low.rank}\n".encode())  # the other sizes are the model's
        digest.update(low.a.data)
        digest.update(low.b.data)
    return digest.hexdigest()


def _in_pairs(name: str, b: NDArray[np.float32], config: DecoderConfig) -> NDArray[np.float32]:
    """`b` with the rows of query and key heads as a checkpoint has them; see `pair_rows`."""
    part = name.split(".")[-2]
    if part not in ("attn_q", "attn_k"):
        return b
    heads = config.heads if part == "attn_q" else config.kv_heads
    return b.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(b.shape)


def shortened(name: str) -> str:
    """A name from a file as an error may show it."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in name[:97])
    return shown if len(shown) <= 96 else shown[:93] + "..."
