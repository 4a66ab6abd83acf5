"""What the gateway answers: where it listens."""

from __future__ import annotations

from microkernel.message import Message

__all__ = ["Address"]


class Address(Message, kw_only=True):
    """Where the gateway listens. `url` is the one to use on this machine, `urls` are all of them.

    `certificate` is the file of the certificate that it shows, None where it does not encrypt.
    """

    url: str
    urls: tuple[str, ...]
    host: str
    port: int
    certificate: str | None = None
