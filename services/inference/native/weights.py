"""A checkpoint's weights in the kernels' layout: in a file that later starts only map, or in memory.

What the checkpoint keeps quantised stays so, value for value; only the scales of K-quants, which have scales
themselves, are multiplied out to float16. Types that the kernels do not know become 8 bits with a scale for each 32
weights, and what is not quantised becomes bfloat16.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize
from numpy.typing import NDArray

from formats.checkpoint.architecture import DecoderConfig, expected_shapes
from formats.checkpoint.checkpoint import Checkpoint, Stored
from microkernel.errors import DataLoss
from services.inference.native.library import Kernels, Kind, Source

__all__ = ["Packed", "Weights", "file_name", "fits", "open_weights", "packed_bytes"]

LANES = 16
GROUP = 32
ALIGNMENT = 64
LAYOUT = 1  # counted up when the same weights would be packed differently
MAGIC = b"mkweights"
SLAB = 1 << 22  # weights packed at once: a few MiB beside what is written
KINDS = {
    "Q4_0": Kind.BITS4,
    "Q4_1": Kind.BITS4_MINIMUM,
    "Q4_K": Kind.BITS4_MINIMUM,
    "Q5_0": Kind.BITS5,
    "Q5_1": Kind.BITS5_MINIMUM,
    "Q5_K": Kind.BITS5_MINIMUM,
    "Q6_K": Kind.BITS6,
    "Q8_0": Kind.BITS8,
    "F32": Kind.BFLOAT16,
    "F16": Kind.BFLOAT16,
    "BF16": Kind.BFLOAT16,
}


class Packed(msgspec.Struct, frozen=True):
    """One packed matrix: its shape, and its address and bytes for quants, scales and minima (see `formats.h`)."""

    kind: Kind
    rows: int
    columns: int
    offsets: tuple[int, int, int]
    sizes: tuple[int, int, int]


class Weights:
    """All of a model's weights, packed; unmapped with the last reference to this."""

    def __init__(self, memory: mmap.mmap, matrices: dict[str, Packed], vectors: dict[str, tuple[int, int]]) -> None:
        self._memory = memory
        self._bytes: NDArray[np.uint8] = np.frombuffer(memory, dtype=np.uint8)
        self._matrices = matrices
        self._vectors = vectors

    @property
    def nbytes(self) -> int:
        """What they take."""
        return len(self._memory)

    def matrix(self, name: str) -> tuple[Packed, tuple[int, int, int]]:
        """A packed matrix and the addresses of its parts."""
        packed = self._matrices[name]
        start = self._bytes.ctypes.data
        one, two, three = (start + offset for offset in packed.offsets)
        return packed, (one, two, three)

    def vector(self, name: str) -> int | None:
        """The address of a float32 vector, None where the model has none of that name."""
        place = self._vectors.get(name)
        return None if place is None else self._bytes.ctypes.data + place[0]


class _Target(Protocol):
    """Where packed bytes go."""

    def write(self, offset: int, data: NDArray[np.uint8]) -> None: ...


def fits(config: DecoderConfig) -> str | None:
    """Why the kernels cannot compute a model of this shape, or None."""
    for what, columns in (
        ("hidden size", config.hidden_size),
        ("size of all heads", config.heads * config.head_dim),
        ("feed-forward size", config.ffn_size),
    ):
        if columns % GROUP:
            return f"its {what} of {columns} is no multiple of {GROUP}"
    if config.head_dim % LANES:
        return f"its head size of {config.head_dim} is no multiple of {LANES}"
    return None


def file_name(digest: str, variant: str) -> str:
    """Where a model's packed weights are kept, by its content and by what they were packed for."""
    return f"{digest}.{variant}.{LAYOUT}"


def packed_bytes(checkpoint: Checkpoint, kernels: Kernels) -> int:
    """What the packed weights will take, before any is read."""
    return _plan(checkpoint, kernels).end


def open_weights(checkpoint: Checkpoint, kernels: Kernels, *, file: Path | None) -> Weights:
    """The weights, from `file` where that has them, otherwise packed now and kept there for the next time.

    Without a `file`, or where it cannot be written, they are packed into memory. Raises `DataLoss`.
    """
    plan = _plan(checkpoint, kernels)
    if file is not None:
        memory = _mapped(file, plan)
        if memory is None:
            memory = _pack_to_file(file, plan, checkpoint, kernels)
        if memory is not None:
            return Weights(memory, plan.matrices, plan.vectors)
    memory = mmap.mmap(-1, plan.end)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    _pack(_Memory(memory), plan, checkpoint, kernels)
    return Weights(memory, plan.matrices, plan.vectors)


class _Plan:
    """Where everything goes."""

    def __init__(self) -> None:
        self.matrices: dict[str, Packed] = {}
        self.vectors: dict[str, tuple[int, int]] = {}
        self.end = 0

    def place(self, size: int) -> int:
        start = self.end
        self.end += -(-size // ALIGNMENT) * ALIGNMENT
        return start


def _plan(checkpoint: Checkpoint, kernels: Kernels) -> _Plan:
    plan = _Plan()
    for name, shape in expected_shapes(checkpoint.config).items():
        if len(shape) == 1:
            plan.vectors[name] = (plan.place(4 * shape[0]), shape[0])
            continue
        kind = KINDS.get(checkpoint.kind(name), Kind.BITS8)
        sizes = kernels.sizes(kind, *shape)
        one, two, three = (plan.place(size) for size in sizes)
        plan.matrices[name] = Packed(kind, shape[0], shape[1], (one, two, three), sizes)
    return plan


def _pack(target: _Target, plan: _Plan, checkpoint: Checkpoint, kernels: Kernels) -> None:
    for name, (offset, _) in plan.vectors.items():
        values = checkpoint.weight(name).dequantize().numpy().astype(np.float32)
        target.write(offset, values.reshape(-1).view(np.uint8))
    for name, packed in plan.matrices.items():
        stored = _known(checkpoint.stored(name))
        for first, rows in _slabs(packed):
            _pack_rows(target, kernels, packed, stored, first, rows, name=f"{checkpoint.path.name}: tensor {name}")


def _known(stored: Stored) -> Stored:
    """`stored` itself, or as Q8_0 where the kernels do not know its type."""
    if stored.kind in KINDS:
        return stored
    with np.errstate(all="ignore"):  # damaged scales overflow: told afterwards, with the tensor's name
        blocks = quantize(stored.floats(), GGMLQuantizationType.Q8_0)
    return Stored("Q8_0", np.ascontiguousarray(blocks))


def _slabs(packed: Packed) -> Iterator[tuple[int, int]]:
    """(first row, rows) of pieces that are packed at once: whole tiles."""
    step = max(1, SLAB // packed.columns // LANES) * LANES
    for first in range(0, packed.rows, step):
        yield first, min(step, packed.rows - first)


def _pack_rows(
    target: _Target, kernels: Kernels, packed: Packed, stored: Stored, first: int, rows: int, *, name: str
) -> None:
    sizes = kernels.sizes(packed.kind, rows, packed.columns)
    parts = [np.zeros(size, dtype=np.uint8) for size in sizes]
    blocks = np.ascontiguousarray(stored.rows[first : first + rows])
    quants, scales, minima = (part.ctypes.data for part in parts)
    kernels.pack(
        packed.kind,
        Source[stored.kind],
        blocks.ctypes.data,
        blocks.shape[1],
        0,
        rows,
        packed.columns,
        (quants, scales, minima),
    )
    if not _finite(packed.kind, parts):
        raise DataLoss(f"{name} holds numbers that are not finite: the file is damaged", remedy="pull it again")
    whole = kernels.sizes(packed.kind, packed.rows, packed.columns)
    tiles = -(-packed.rows // LANES)
    for part, size, offset in zip(parts, whole, packed.offsets, strict=True):
        if size:
            target.write(offset + size // tiles * (first // LANES), part)


def _finite(kind: Kind, parts: list[NDArray[np.uint8]]) -> bool:
    if kind is Kind.BFLOAT16:
        return bool((parts[0].view(np.uint16) & 0x7F80 != 0x7F80).all())  # all exponent bits: infinite, or no number
    return all(np.isfinite(part.view(np.float16)).all() for part in parts[1:])


class _Memory:
    """Packs into memory."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._bytes: NDArray[np.uint8] = np.frombuffer(memory, dtype=np.uint8)

    def write(self, offset: int, data: NDArray[np.uint8]) -> None:
        self._bytes[offset : offset + len(data)] = data


class _File:
    """Packs into a file, by writing: what is mapped would count as this process's memory."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def write(self, offset: int, data: NDArray[np.uint8]) -> None:
        view = memoryview(data.data)
        while view:
            done = os.pwrite(self._handle, view, offset)
            offset += done
            view = view[done:]


def _pack_to_file(file: Path, plan: _Plan, checkpoint: Checkpoint, kernels: Kernels) -> mmap.mmap | None:
    """Packed into a new file beside `file`, which gets its name when it is whole; None where that cannot be."""
    fresh = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        os.ftruncate(handle, plan.end)
        _pack(_File(handle), plan, checkpoint, kernels)
        os.pwrite(handle, _trailer(handle, plan), plan.end)
        os.fsync(handle)
        fresh.replace(file)
        return mmap.mmap(handle, plan.end, prot=mmap.PROT_READ)
    except OSError:
        return None
    finally:
        os.close(handle)
        fresh.unlink(missing_ok=True)


def _mapped(file: Path, plan: _Plan) -> mmap.mmap | None:
    """The weights in `file`, None where there is none, or not a whole one."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.fstat(handle).st_size != plan.end + len(MAGIC) + 8:
            return None
        if os.pread(handle, len(MAGIC) + 8, plan.end) != _trailer(handle, plan):
            return None
        return mmap.mmap(handle, plan.end, prot=mmap.PROT_READ)
    except OSError:
        return None
    finally:
        os.close(handle)


def _trailer(handle: int, plan: _Plan) -> bytes:
    """What follows the weights in a file that is whole: their checksum."""
    checksum = 0
    for offset in range(0, plan.end, 1 << 22):
        checksum = zlib.crc32(os.pread(handle, min(1 << 22, plan.end - offset), offset), checksum)
    return MAGIC + LAYOUT.to_bytes(4, "little") + checksum.to_bytes(4, "little")
