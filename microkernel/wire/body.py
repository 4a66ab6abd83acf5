"""What a message carries: JSON alone, or JSON with buffers beside it. Hot: once a message.

In a `Bulk`, `{"$buffer":0,"dtype":"bfloat16","shape":[4,1024]}` stands for an array whose bytes are buffer 0, and
`{"$buffer":1}` for bytes. Each buffer stands in exactly one place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from microkernel.buffers import Array, array_to_json
from microkernel.errors import Invalid

__all__ = [
    "LONG_BYTES",
    "Body",
    "Bulk",
    "HoldsBuffers",
    "bulk_of",
    "encode_inline",
    "encode_plain",
    "has_long_bytes",
    "is_long_bytes",
    "refuse",
    "value_of",
]

LONG_BYTES = (
    16 * 1024
)  # bytes fields as long as this are worth a binary frame: base64 there and back costs 1.3 us a KiB
PLACEHOLDER = b'"$buffer":'
MARK = "$buffer"

_BYTES = frozenset({bytes, bytearray, memoryview})
_SCALARS = frozenset({int, float, str, bool, type(None)})
_LEFT_ALONE = (bytes, bytearray, memoryview, msgspec.Raw, Array)
_known_to_be_long: set[type] = set()  # messages that once held long bytes: theirs are not tried as text first


class Bulk:
    """A body with buffers beside it; in `json`, placeholders name them by their number.

    It is no struct on purpose: an encoder has to ask what to do about it.
    """

    __slots__ = ("buffers", "json")

    def __init__(self, json: msgspec.Raw, buffers: tuple[memoryview, ...]) -> None:
        self.json = json
        self.buffers = buffers

    @property
    def nbytes(self) -> int:
        """Bytes of the JSON and of all buffers."""
        return len(self.json) + sum(map(len, self.buffers))


if TYPE_CHECKING:
    Body: TypeAlias = msgspec.Raw | Bulk
else:
    Body = msgspec.Raw  # what a frame's JSON is decoded as; a `Bulk` is put there by hand


class HoldsBuffers(Exception):
    """What was to become plain JSON holds an array."""


def encode_plain(value: Any) -> bytes:
    """`value` as JSON; raises `HoldsBuffers` where it holds an array or long bytes, else what msgspec raises."""
    if is_long_bytes(value) or (type(value) in _known_to_be_long and has_long_bytes(value)):
        raise HoldsBuffers
    body = _plain.encode(value)
    if len(body) >= LONG_BYTES and has_long_bytes(value):
        if isinstance(value, msgspec.Struct):
            _known_to_be_long.add(type(value))
        raise HoldsBuffers
    return body


def encode_inline(value: Any) -> bytes:
    """`value` as JSON, with arrays and bytes as base64; raises what msgspec raises."""
    return _inline.encode(value)


def bulk_of(value: Any) -> Bulk:
    """`value` with its arrays and long bytes beside it. Raises what msgspec raises, and `Invalid` for a forgery."""
    buffers: list[memoryview] = []
    plain = msgspec.to_builtins(value, builtin_types=_LEFT_ALONE, str_keys=True)
    json = _inline.encode(_pull_out(plain, buffers))
    if json.count(PLACEHOLDER) != len(buffers):
        raise Invalid(f"a message that holds arrays or long bytes has no field of its own called '{MARK}'", field=MARK)
    return Bulk(msgspec.Raw(json), tuple(buffers))


def value_of(bulk: Bulk, *, what: str, as_text: bool = False) -> Any:
    """What was given to `bulk_of`, as plain dicts and lists with arrays and bytes in them.

    With `as_text`, bytes become the base64 text that they are in JSON. Raises `Invalid` for a placeholder that names no
    buffer, or one that was named before, and for a buffer that is named nowhere.
    """
    left = dict(enumerate(bulk.buffers))
    try:
        value = _put_back(msgspec.json.decode(bulk.json), left, as_text)
    except Invalid as error:
        raise Invalid(f"{what}: {error.message}", field=error.field) from error
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise Invalid(f"{what}: {error}") from error
    if left:
        raise Invalid(f"{what}: {len(left)} of {len(bulk.buffers)} buffers are named nowhere, such as {min(left)}")
    return value


# Functions of the module, no closures: one that calls itself is a cycle, and would keep the buffers until the collector
# comes by.


def _pull_out(value: Any, buffers: list[memoryview]) -> Any:
    kind = type(value)
    if kind is dict:
        return {key: item if type(item) in _SCALARS else _pull_out(item, buffers) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [item if type(item) in _SCALARS else _pull_out(item, buffers) for item in value]
    if kind is Array:
        buffers.append(value.view())
        return {MARK: len(buffers) - 1, "dtype": value.dtype, "shape": value.shape}
    if kind in _BYTES and memoryview(value).nbytes >= LONG_BYTES:
        buffers.append(Array(value).view())
        return {MARK: len(buffers) - 1}
    return value


def _put_back(value: Any, left: dict[int, memoryview], as_text: bool) -> Any:
    if type(value) is dict:
        if MARK in value:
            return _fill(value, left, as_text)
        return {key: item if type(item) in _SCALARS else _put_back(item, left, as_text) for key, item in value.items()}
    if type(value) is list:
        return [item if type(item) in _SCALARS else _put_back(item, left, as_text) for item in value]
    return value


def _fill(placeholder: dict[str, Any], left: dict[int, memoryview], as_text: bool) -> Any:
    number = placeholder[MARK]
    buffer = left.pop(number, None) if type(number) is int else None
    if buffer is None:
        raise Invalid(f"'{MARK}': {str(number)[:40]} names no buffer, or one that was named before")
    if placeholder.keys() == {MARK}:
        return to_text(buffer) if as_text else bytes(buffer)
    if placeholder.keys() != {MARK, "dtype", "shape"}:
        raise Invalid(f"the place of buffer {number} needs a dtype and a shape, and nothing else")
    try:
        return Array(buffer, placeholder["dtype"], placeholder["shape"])
    except Invalid as error:
        raise Invalid(f"buffer {number}: {error.message}", field=error.field) from error


def to_text(buffer: memoryview) -> str:
    """Bytes as they are in JSON: base64."""
    return str(msgspec.to_builtins(buffer))


def is_long_bytes(value: Any) -> bool:
    """Whether it is bytes that are worth a binary frame: to try them as text first costs more than to send them."""
    return type(value) in _BYTES and memoryview(value).nbytes >= LONG_BYTES


def has_long_bytes(value: Any) -> bool:
    """Whether bytes are in it that are worth a binary frame."""
    kind = type(value)
    if kind in _BYTES:
        return memoryview(value).nbytes >= LONG_BYTES
    items: Any
    if kind is dict:
        items = value.values()
    elif kind is list or kind is tuple:
        items = value
    elif isinstance(value, msgspec.Struct):
        items = [getattr(value, name) for name in value.__struct_fields__]
    else:
        return False
    # The types alone tell most: a list of a million numbers is passed over at the speed of C.
    return not set(map(type, items)) <= _SCALARS and any(has_long_bytes(item) for item in items)


def refuse(value: Any) -> Any:
    """An encoder's hook: raises `HoldsBuffers` for what does not belong into JSON alone."""
    if type(value) is Array or type(value) is Bulk:
        raise HoldsBuffers
    raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")


def _write_out(value: Any) -> Any:
    if type(value) is Array:
        return array_to_json(value)
    if type(value) is Bulk:
        return value.json
    raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")


_plain = msgspec.json.Encoder(enc_hook=refuse)
_inline = msgspec.json.Encoder(enc_hook=_write_out)
