"""Results as clients see them: read-only records, `piece.text` and `piece["text"]` alike."""

from __future__ import annotations

from collections.abc import Iterator, KeysView
from typing import Any, NoReturn

__all__ = ["Record", "as_record"]


class Record:
    """A JSON object with its fields as attributes.

    Iterating gives the fields' names, so `dict(record)` works; a field called `keys` is reached by
    `record["keys"]`.
    """

    __slots__ = ("_fields",)

    _fields: dict[str, Any]

    def __init__(self, fields: dict[str, Any]) -> None:
        object.__setattr__(self, "_fields", fields)

    def __getattr__(self, name: str) -> Any:
        # Copying asks for special names before there are fields.
        if name.startswith("__") or name == "_fields":
            raise AttributeError(name)
        try:
            return as_record(self._fields[name])
        except KeyError:
            names = ", ".join(self._fields) or "no fields"
            raise AttributeError(f"no field '{name}' among {names}") from None

    def __getitem__(self, name: str) -> Any:
        return as_record(self._fields[name])

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError("a record is read-only")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a record is read-only")

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Record):
            return self._fields == other._fields
        return self._fields == other if isinstance(other, dict) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # its fields may hold lists

    def __repr__(self) -> str:
        return f"Record({', '.join(f'{name}={value!r}' for name, value in self._fields.items())})"

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._fields]

    def __reduce__(self) -> tuple[type[Record], tuple[dict[str, Any]]]:
        return Record, (self._fields,)

    def keys(self) -> KeysView[str]:
        """The fields' names."""
        return self._fields.keys()


def as_record(value: Any) -> Any:
    """`value` with every object in it as a `Record`."""
    if isinstance(value, dict):
        return Record(value)
    if isinstance(value, list):
        return [as_record(item) for item in value]
    return value
