"""Names of types: how an end tells the other as what a value is to be read, without sending any code.

A name is looked up among the modules that are imported already and never imports one; what has no name here, or
none there, is read as plain values.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import types
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec

__all__ = ["Fields", "as_fields", "kind_named", "name_of", "name_of_value"]

_SCALARS: dict[str, Any] = {
    kind.__name__: kind for kind in (bool, int, float, str, bytes, bytearray, list, dict, tuple, set, frozenset)
}
_CONTAINERS = (list, dict, tuple, set, frozenset)


class Fields(dict[str, Any]):
    """An object whose type is not known at this end, with its fields as items and as attributes."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no field '{name}' among {', '.join(map(str, self)) or 'no fields'}") from None


def as_fields(value: Any) -> Any:
    """`value` with every dict in it as `Fields`."""
    if isinstance(value, dict):
        return Fields({key: as_fields(item) for key, item in value.items()})
    if isinstance(value, list):
        return [as_fields(item) for item in value]
    return value


def name_of(kind: Any) -> Any:
    """The name of a type (text, or a list for one with parameters); None for one without."""
    origin = get_origin(kind)
    if origin is Annotated:
        return name_of(get_args(kind)[0])
    if kind is None or kind is types.NoneType:
        return "None"
    if origin is None:
        if kind in _SCALARS.values():
            return kind.__name__
        return _class_name(kind) if _is_record(kind) else None
    word = "|" if origin in {Union, types.UnionType} else getattr(origin, "__name__", None)
    if word != "|" and origin not in _CONTAINERS:
        return None
    parts = ["..." if part is Ellipsis else name_of(part) for part in get_args(kind)]
    return None if None in parts else [word, *parts]


def name_of_value(value: Any, declared: Any) -> Any:
    """The name of the type that `value` has, or else was declared to have."""
    kind = type(value) if isinstance(value, msgspec.Struct) or dataclasses.is_dataclass(value) else declared
    try:
        return _name_of(kind)
    except TypeError:  # an annotation that has no hash
        return name_of(kind)


# To spell out a type takes microseconds, and there are few of them.
_name_of: Callable[[Any], Any] = functools.lru_cache(1024)(name_of)


def kind_named(name: Any) -> Any:
    """The type of that name; `Any` where it is not known at this end."""
    if isinstance(name, str):
        if name == "None":
            return types.NoneType
        return _SCALARS[name] if name in _SCALARS else _find(name)
    if not isinstance(name, list | tuple) or not name:
        return Any
    word, *parts = name
    kinds = [Ellipsis if part == "..." else kind_named(part) for part in parts]
    if Any in kinds or not kinds:
        return Any
    if word == "|":
        return Union[tuple(kinds)]  # noqa: UP007 - of a list that is known at run time only
    return _SCALARS[word][tuple(kinds)] if word in _SCALARS else Any


def _is_record(kind: Any) -> bool:
    return inspect.isclass(kind) and (issubclass(kind, msgspec.Struct | Enum) or dataclasses.is_dataclass(kind))


def _class_name(kind: type[Any]) -> str | None:
    return None if "<locals>" in kind.__qualname__ else f"{kind.__module__}:{kind.__qualname__}"


def _find(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if _is_record(found) else Any
