"""A server's key: read from a variable or a file, sent to that server, and shown to nobody."""

from __future__ import annotations

import os
from pathlib import Path

from microkernel.errors import PreconditionFailed

__all__ = ["Key"]

LONGEST = 8192  # characters
HIDDEN = "(the key)"


class Key:
    """The key of one server; without a source there is none. `source` is how it is named to people."""

    def __init__(self, *, env: str | None, file: str | None) -> None:
        self._env = env
        self._file = file
        self._value: str | None = None
        self.source = f"${env}" if env is not None else file

    def __repr__(self) -> str:
        return f"Key({self.source})"

    def read(self) -> bool:
        """Read it again, on a thread; whether it is another one than before.

        Raises `PreconditionFailed` where there is none, or it is nothing that a header can have.
        """
        found = self._read()
        if found is not None and not (0 < len(found) <= LONGEST and all("!" <= sign <= "~" for sign in found)):
            raise PreconditionFailed(f"{self.source} has no key: one line of visible ASCII characters is needed")
        changed, self._value = found != self._value, found
        return changed

    def headers(self) -> dict[str, str]:
        """What shows it to its server."""
        return {} if self._value is None else {"Authorization": f"Bearer {self._value}"}

    def hidden(self, text: str) -> str:
        """`text` without it: a server may repeat it in its errors."""
        return text if not self._value else text.replace(self._value, HIDDEN)

    def _read(self) -> str | None:
        if self._env is not None:
            value = os.environ.get(self._env)
            if value is None:
                raise PreconditionFailed(f"the environment has no {self._env}, where its key should be")
            return value.strip()
        if self._file is None:
            return None
        try:
            with Path(self._file).expanduser().open("rb") as file:
                return file.read(LONGEST + 2).decode("ascii", "replace").strip()
        except OSError as error:
            raise PreconditionFailed(f"{self._file}, where its key should be: {error.strerror}") from error
