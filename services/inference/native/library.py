"""The kernels as Python sees them: the structs and calls of `kernels/kernels.cpp`.

Calls let go of the interpreter lock.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum
from pathlib import Path

from microkernel.errors import Overloaded, PreconditionFailed

__all__ = [
    "Adapted",
    "AdapterLayer",
    "Batch",
    "Kernels",
    "Kind",
    "Layer",
    "LowRank",
    "Matrix",
    "Model",
    "PageKind",
    "Sequence",
    "Source",
    "Team",
]

INTERFACE = 2


class Kind(IntEnum):
    """How packed weights lie in memory; see `kernels/formats.h`."""

    BITS4 = 0
    BITS4_MINIMUM = 1
    BITS5 = 2
    BITS5_MINIMUM = 3
    BITS6 = 4
    BITS8 = 5
    BFLOAT16 = 6


class PageKind(IntEnum):
    """How keys and values lie in a page; see `kernels/attention.h`."""

    BFLOAT16 = 0
    INT8 = 1


class Source(IntEnum):
    """What weights are packed from, by GGML's numbers."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    BF16 = 30


class Matrix(ctypes.Structure):
    """`rows` outputs by `columns` inputs, packed; addresses of what `kernels/product.h` says."""

    _fields_ = (
        ("kind", c_int32),
        ("rows", c_int32),
        ("columns", c_int32),
        ("quants", c_void_p),
        ("scales", c_void_p),
        ("minima", c_void_p),
        ("bias", c_void_p),
    )


class Layer(ctypes.Structure):
    """One layer's weights; `window` 0 sees all tokens."""

    _fields_ = (
        ("query", Matrix),
        ("key", Matrix),
        ("value", Matrix),
        ("output", Matrix),
        ("gate", Matrix),
        ("up", Matrix),
        ("down", Matrix),
        ("attention_norm", c_void_p),
        ("ffn_norm", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("window", c_int64),
    )


class Model(ctypes.Structure):
    """A decoder's sizes and weights."""

    _fields_ = (
        ("hidden", c_int32),
        ("ffn", c_int32),
        ("layers", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("size", c_int32),
        ("vocabulary", c_int32),
        ("epsilon", c_float),
        ("pages", c_int32),
        ("table", Matrix),
        ("head", Matrix),
        ("norm", c_void_p),
        ("rotations", c_void_p),
        ("layer", POINTER(Layer)),
    )


class Sequence(ctypes.Structure):
    """`count` tokens of a step from place `first` on, at positions from `start`; `pages` is an array of addresses."""

    _fields_ = (
        ("pages", c_void_p),
        ("first", c_int32),
        ("count", c_int32),
        ("start", c_int32),
    )


class LowRank(ctypes.Structure):
    """What an adapter adds to one matrix; without rows, nothing."""

    _fields_ = (("a", Matrix), ("b", Matrix))


class AdapterLayer(ctypes.Structure):
    """What an adapter adds to the matrices of one layer."""

    _fields_ = tuple((name, LowRank) for name in ("query", "key", "value", "output", "gate", "up", "down"))


class Adapted(ctypes.Structure):
    """`count` tokens of a step from place `first` on, which all have the adapter of these layers."""

    _fields_ = (
        ("first", c_int32),
        ("count", c_int32),
        ("layer", POINTER(AdapterLayer)),
    )


class Batch(ctypes.Structure):
    """A step's work; see `kernels/decoder.h`."""

    _fields_ = (
        ("tokens", c_int32),
        ("sequences", c_int32),
        ("wanted", c_int32),
        ("threads", c_int32),
        ("ids", c_void_p),
        ("sequence", POINTER(Sequence)),
        ("rows", c_void_p),
        ("logits", c_void_p),
        ("adapter", POINTER(Adapted)),
        ("adapters", c_int32),
        ("rank", c_int32),
    )


class Kernels:
    """One build of the kernels."""

    def __init__(self, path: Path, variant: str) -> None:
        """Load the library at `path`. Raises `PreconditionFailed` where it is of another version."""
        self.variant = variant
        self._library = ctypes.CDLL(str(path))
        library = self._library
        library.mk_interface.restype = c_int32
        if library.mk_interface() != INTERFACE:
            raise PreconditionFailed(f"{path.name} has another interface", remedy="build it again: pip install -e .")
        sizes = (c_int64 * 7)()
        library.mk_structs(sizes)
        ours = [ctypes.sizeof(struct) for struct in (Matrix, Layer, Model, Sequence, Batch, AdapterLayer, Adapted)]
        if list(sizes) != ours:
            raise PreconditionFailed(f"{path.name} lays out its structs as {list(sizes)}, not {ours}")
        library.mk_sizes.argtypes = (c_int32, c_int64, c_int64, POINTER(c_int64))
        library.mk_sizes.restype = None
        library.mk_pack.argtypes = (
            *(c_int32, c_int32, c_void_p, c_int64, c_int32, c_int32, c_int32),
            *(c_void_p, c_void_p, c_void_p),
        )
        library.mk_pack.restype = None
        library.mk_team_new.argtypes = (c_int32,)
        library.mk_team_new.restype = c_void_p
        library.mk_space_new.restype = c_void_p
        for name in ("mk_team_free", "mk_space_free"):
            getattr(library, name).argtypes = (c_void_p,)
            getattr(library, name).restype = None
        library.mk_step.argtypes = (POINTER(Model), c_void_p, c_void_p, POINTER(Batch))
        library.mk_step.restype = c_int32

    def sizes(self, kind: Kind, rows: int, columns: int) -> tuple[int, int, int]:
        """Bytes that a packed matrix takes: its quants, its scales, its minima."""
        out = (c_int64 * 3)()
        self._library.mk_sizes(kind, rows, columns, out)
        return out[0], out[1], out[2]

    def pack(
        self,
        kind: Kind,
        source: Source,
        blocks: int,
        stride: int,
        first: int,
        rows: int,
        columns: int,
        target: tuple[int, int, int],
    ) -> None:
        """Pack `rows` rows, `stride` bytes apart from the address `blocks` on, as rows `first` and on of `target`.

        `target` holds the addresses of quants, scales and minima, zero before.
        """
        self._library.mk_pack(kind, source, blocks, stride, first, rows, columns, *target)

    def team(self, threads: int) -> Team:
        """Threads for steps of models, the caller's own included."""
        return Team(self, self._library, threads)


class Team:
    """Compute threads and the space of their steps; one step at a time."""

    def __init__(self, kernels: Kernels, library: ctypes.CDLL, threads: int) -> None:
        self.kernels = kernels
        self._library = library
        self.threads = threads
        self._space: int | None = library.mk_space_new()
        self._team: int | None = library.mk_team_new(threads)
        if not self._team or not self._space:
            self.close()
            raise Overloaded(f"{threads} compute threads cannot be created", remedy="allow more threads")

    def step(self, model: Model, batch: Batch) -> None:
        """Run one step; raises `MemoryError` before anything is computed."""
        if self._library.mk_step(ctypes.byref(model), self._team, self._space, ctypes.byref(batch)):
            raise MemoryError(f"no memory for a step of {batch.tokens} tokens")

    def close(self) -> None:
        """End the threads."""
        if self._team:
            self._library.mk_team_free(self._team)
        if self._space:
            self._library.mk_space_free(self._space)
        self._team = self._space = None
