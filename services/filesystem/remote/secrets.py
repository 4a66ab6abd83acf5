"""Credentials: what they are called, where they come from, and how they stay out of what is told."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from microkernel.errors import Invalid, PreconditionFailed

__all__ = ["Secrets", "check_options", "options_from"]

SHORTEST = 6  # letters from which on a value is looked for in texts: shorter ones are in many words
LONGEST_TOLD = 240

_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+")
_SECRET_WORDS = frozenset({
    "apikey", "auth", "authorization", "cookie", "credential", "credentials", "key", "passphrase", "passwd",
    "password", "pat", "sas", "secret", "signature", "token"
})  # fmt: skip
_PLACE_WORDS = frozenset(["file", "filename", "path", "url", "id"])
_KNOWN_VALUES = frozenset({"anon", "google_default", "browser", "cloud", "cache"})  # gcsfs takes them as a token
_USER = re.compile(r"(://)[^/\s@]*@")
_PASSWORD = re.compile(r"://[^/\s@]*:[^/\s@]*@")
_QUERY = re.compile(r"(://[^\s?'\"<>]*)\?[^\s'\"<>)]*")
_BEARER = re.compile(r"\b(bearer|basic|token)\s+[\w.~+/=-]{6,}", re.IGNORECASE)


class Secrets:
    """What must not be told, and texts without it."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        kept = {value for value in values if len(value) >= SHORTEST}
        kept |= {value for name, value in os.environ.items() if is_secret(name) and len(value) >= SHORTEST}
        self._values = sorted(kept, key=len, reverse=True)

    def __repr__(self) -> str:
        return f"Secrets({len(self._values)})"

    def hide(self, text: str) -> str:
        """A text of a library in one line: no value of ours, no user and no query of a URL, no header is in it."""
        for value in self._values:
            text = text.replace(value, "***")
        text = _BEARER.sub(r"\1 ***", _QUERY.sub(r"\1?***", _USER.sub(r"\1", text)))
        text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
        return text if len(text) <= LONGEST_TOLD else text[: LONGEST_TOLD - 3] + "..."


def is_secret(name: str) -> bool:
    """Whether an option, a header or a variable of that name holds a credential."""
    words = {word.lower() for word in _WORD.findall(name)}
    return bool(words & _SECRET_WORDS) and not words & _PLACE_WORDS


def check_options(options: Mapping[str, Any]) -> None:
    """Raises `Invalid` where a credential is among options that are kept, listed and logged."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            check_options(value)
        elif isinstance(value, str) and _PASSWORD.search(value):
            raise Invalid(
                f"there is a password in the URL of the option {name!r}", field="options", remedy="use options_env"
            )
        elif is_secret(name) and isinstance(value, str | bytes | list | tuple) and value not in _KNOWN_VALUES:
            raise Invalid(
                f"the option {name!r} would be kept where others read it",
                field="options",
                remedy=f'put it into a variable of the node\'s environment: options_env = {{{name} = "MY_VARIABLE"}}',
            )


def options_from(options: Mapping[str, Any], variables: Mapping[str, str]) -> tuple[dict[str, Any], Secrets]:
    """What goes to the library, and what must not be told of it.

    A name with dots in `variables` leads into tables. Raises `PreconditionFailed` for a variable that is not there.
    """
    merged: dict[str, Any] = {name: _copy(value) for name, value in options.items()}
    values = []
    for name, variable in variables.items():
        value = os.environ.get(variable)
        if value is None:
            raise PreconditionFailed(
                f"the variable {variable}, which holds the option {name!r}, is not in the node's environment",
                remedy="set it where the node is booted",
            )
        *tables, last = name.split(".")
        place = merged
        for table in tables:
            place = place.setdefault(table, {})
        place[last] = value
        values.append(value)
    return merged, Secrets(values)


def _copy(value: Any) -> Any:
    return {name: _copy(each) for name, each in value.items()} if isinstance(value, Mapping) else value
