"""What may be said of a mount."""

from __future__ import annotations

from typing import Any

from microkernel.errors import Invalid
from microkernel.message import Message
from services.filesystem.remote.address import parse_address
from services.filesystem.remote.secrets import check_options

__all__ = ["Mount", "check_mount"]


class Mount(Message, kw_only=True):
    """Other storage in the tree. `options` go to the back end of fsspec; `options_env` name variables of the node's
    environment with those that nobody is to read.

    `users` are who may read, everybody where that is not said; root alone changes what is there, with `writable`. What
    is read is kept on disk up to `cache_bytes`; what is where is asked again after `cache_seconds`. By default nothing
    is kept of `file://` and `memory://`, and of others 1 GiB and 10 s. A call takes at most `timeout_seconds`.
    """

    url: str
    options: dict[str, Any] = {}
    options_env: dict[str, str] = {}
    writable: bool = False
    cache_bytes: int | None = None
    cache_seconds: float | None = None
    users: tuple[str, ...] | None = None
    timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        try:
            check_mount(self.url, self.options, self.cache_bytes, self.cache_seconds)
            if not self.timeout_seconds > 0:
                raise Invalid(f"timeout_seconds is {self.timeout_seconds:g}, allowed is more than 0")
        except Invalid as error:  # with the file and the line, where it is read from one
            raise ValueError(str(error)) from None


def check_mount(
    url: str, options: dict[str, Any], cache_bytes: int | None = None, cache_seconds: float | None = None
) -> None:
    """Raises `Invalid` for what cannot be meant, and for credentials, which it does not repeat."""
    parse_address(url)
    check_options(options)
    for name, value in (("cache_bytes", cache_bytes), ("cache_seconds", cache_seconds)):
        if value is not None and not value >= 0:
            raise Invalid(f"{name} is {value}, allowed is 0 and more", field=name)
