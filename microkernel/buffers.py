"""Arrays as fields of messages: bytes with a dtype and a shape, passed by reference inside the process.

An `Array` is a view of memory that somebody else owns, a tensor or a received frame. It is read-only for whoever gets
it, and whoever hands it over leaves the memory as it is from then on. No tensor library is imported here: arrays are
made from whatever speaks the buffer protocol, and the view is given back the same way. On a link the bytes travel
beside the JSON (see `microkernel.wire.binary`); in text they are base64.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

from microkernel.errors import Invalid

__all__ = ["DTYPES", "LONGEST_SHAPE", "Array", "array_from_json", "array_schema", "array_to_json", "decode_custom"]

DTYPES: dict[str, int] = {
    "bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "uint64": 8, "int64": 8,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
    "complex64": 8, "complex128": 16,
}  # fmt: skip
"""Bytes of one element, by the names that numpy and torch share."""

LONGEST_SHAPE = 32  # dimensions; numpy has at most 64, memoryview 64, torch in practice 25

_KINDS = {"bool": "b1", "uint": "u", "int": "i", "float": "f", "complex": "c"}
_FORMATS = {
    "?": "bool", "B": "uint8", "b": "int8", "c": "uint8", "H": "uint16", "h": "int16", "I": "uint32", "i": "int32",
    "Q": "uint64", "q": "int64", "L": "uint64", "l": "int64", "N": "uint64", "n": "int64",
    "e": "float16", "f": "float32", "d": "float64", "Zf": "complex64", "Zd": "complex128",
}  # fmt: skip
_STANDARD_SIZES = {"L": "uint32", "l": "int32"}  # of formats with `<`, where a long has four bytes


class Array:
    """A read-only array: `dtype`, `shape`, and its elements in C order, little endian.

    >>> Array(b"abcdef", "uint8", (2, 3)).shape
    (2, 3)
    """

    __slots__ = ("_bytes", "dtype", "shape")

    def __init__(self, data: Any, dtype: str = "uint8", shape: tuple[int, ...] | list[int] | None = None) -> None:
        """`data` is contiguous and speaks the buffer protocol; without `shape`, there is one dimension.

        Raises `Invalid` when the bytes do not make up the shape, with both numbers.
        """
        flat = _flat(data)
        size = _size_of(dtype)
        self.dtype = dtype
        self.shape = (flat.nbytes // size,) if shape is None else _shape(shape)
        self._bytes = flat
        if (needed := math.prod(self.shape) * size) != flat.nbytes:
            raise Invalid(
                f"an array of {dtype} in the shape {list(self.shape)} takes {needed} bytes, not {flat.nbytes}",
                field="shape",
            )

    @classmethod
    def from_(cls, source: Any) -> Array:
        """The array of a numpy array, a torch tensor, or anything with the buffer protocol or `__array__`.

        Nothing is copied that is contiguous and in main memory. Raises `Invalid` for what is none of these.
        """
        if isinstance(source, Array):
            return source
        if hasattr(source, "detach") and hasattr(source, "numpy"):
            return _from_tensor(source)
        try:
            return _from_buffer(source)
        except (TypeError, ValueError, BufferError) as error:
            if hasattr(source, "__array__"):  # it lends no buffer itself, such as arrays of a compiler's own
                return _from_buffer(source.__array__())
            raise Invalid(f"a {type(source).__name__} is no array: {error}") from error

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self._bytes.nbytes

    def view(self) -> memoryview:
        """The elements' bytes, read-only and flat; no copy. `numpy.frombuffer` and `torch.frombuffer` take it."""
        return self._bytes

    def __bytes__(self) -> bytes:
        return bytes(self._bytes)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """numpy's protocol: `numpy.asarray(array)` is a view. numpy itself has no bfloat16 and no float8."""
        return {"version": 3, "shape": self.shape, "typestr": self._typestr(), "data": self._bytes}

    def _typestr(self) -> str:
        name = self.dtype.rstrip("0123456789")
        if name not in _KINDS:
            raise AttributeError(f"numpy has no {self.dtype}: view it as uint{8 * DTYPES[self.dtype]} instead")
        size = DTYPES[self.dtype]
        return "|b1" if name == "bool" else f"{'|' if size == 1 else '<'}{_KINDS[name]}{size}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array):
            return NotImplemented
        return (self.dtype, self.shape) == (other.dtype, other.shape) and self._bytes == other._bytes

    def __hash__(self) -> int:
        return hash((self.dtype, self.shape))

    def __deepcopy__(self, _: Any) -> Array:
        return Array(bytes(self._bytes), self.dtype, self.shape)  # of the memory too: it belongs to somebody else

    def __repr__(self) -> str:
        return f"Array({self.dtype}, shape={list(self.shape)})"


def array_to_json(array: Array) -> dict[str, Any]:
    """`array` as what text frames and logs hold: the bytes become base64."""
    return {"dtype": array.dtype, "shape": array.shape, "data": array.view()}


def array_from_json(value: Any) -> Array:
    """The inverse of `array_to_json`; an `Array` stays what it is. Raises `Invalid`, a ValueError for msgspec."""
    if isinstance(value, Array):
        return value
    if not isinstance(value, dict) or not {"dtype", "shape", "data"} <= value.keys():
        raise ValueError('Expected an array: {"dtype", "shape", "data"}')
    data = value["data"]
    if isinstance(data, str):
        try:
            data = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError("Invalid base64 in the array's data") from error
    try:
        return Array(data, value["dtype"], value["shape"])
    except Invalid as error:
        raise ValueError(error.message) from error


def decode_custom(kind: type, value: Any) -> Any:
    """msgspec's hook for types it does not know: of ours there is `Array`."""
    if kind is Array:
        return array_from_json(value)
    if isinstance(value, kind):
        return value
    raise TypeError(f"Type {kind!r} is not supported")


def array_schema() -> dict[str, Any]:
    """JSON Schema of an array in text."""
    shape = {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": LONGEST_SHAPE}
    return {
        "title": "Array",
        "type": "object",
        "properties": {
            "dtype": {"enum": list(DTYPES)},
            "shape": shape,
            "data": {"type": "string", "contentEncoding": "base64"},
        },
        "required": ["dtype", "shape", "data"],
    }


def _size_of(dtype: Any) -> int:
    size = DTYPES.get(dtype) if isinstance(dtype, str) else None
    if size is None:
        raise Invalid(f"an array has no dtype {_quoted(dtype)}", field="dtype", remedy=f"one of {', '.join(DTYPES)}")
    return size


def _flat(data: Any) -> memoryview:
    try:
        view = memoryview(data)
        # A view with a zero in its shape cannot be cast.
        return (view.cast("B") if view.nbytes else memoryview(b"")).toreadonly()
    except TypeError as error:
        raise Invalid(f"an array is made of contiguous bytes, not of {type(data).__name__}: {error}") from error


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple | list) or len(shape) > LONGEST_SHAPE:
        raise Invalid(f"a shape has at most {LONGEST_SHAPE} whole numbers, not {_quoted(shape)}", field="shape")
    for length in shape:
        # The largest length keeps the product of a hostile shape small enough to be counted.
        if type(length) is not int or not 0 <= length < 2**63:
            raise Invalid(f"a dimension is a whole number from 0 to 2**63 - 1, not {_quoted(length)}", field="shape")
    return tuple(shape)


def _from_tensor(tensor: Any) -> Array:
    """A torch tensor, or what behaves like one; torch itself is never imported."""
    dtype = str(tensor.dtype).rpartition(".")[2]
    _size_of(dtype)
    tensor = tensor.detach().cpu()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    flat = tensor.contiguous().reshape(-1)
    # numpy knows no bfloat16 and no float8: every dtype crosses as bytes. The type is asked of the tensor itself.
    return Array(flat.view(_uint8_of(flat)).numpy(), dtype, tuple(tensor.shape))


def _uint8_of(tensor: Any) -> Any:
    """torch's own `uint8`, from a tensor: a comparison's bool as bytes."""
    return tensor.new_empty(0).byte().dtype


def _from_buffer(source: Any) -> Array:
    view = memoryview(source)
    dtype = _dtype_of(view.format)
    if not view.c_contiguous:
        view = memoryview(view.tobytes()).cast("B")  # the one copy: an array is in C order
        return Array(view, dtype, memoryview(source).shape)
    return Array(view, dtype, view.shape)


def _dtype_of(layout: str) -> str:
    order, code = (layout[0], layout[1:]) if layout[:1] in {"<", ">", "=", "@", "!"} else ("@", layout)
    dtype = _STANDARD_SIZES.get(code) if order in {"<", "="} else None
    dtype = dtype or _FORMATS.get(code)
    if dtype is None or (order in {">", "!"} and DTYPES[dtype] > 1):
        raise Invalid(f"elements of the format {_quoted(layout)} are no dtype of an array", field="dtype")
    return dtype


def _quoted(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
