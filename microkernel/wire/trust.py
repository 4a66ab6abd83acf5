"""Whose certificate is believed at the other end of a link: the system's authorities, those of a file, or one name."""

from __future__ import annotations

import ssl

import msgspec

from microkernel.errors import PreconditionFailed

__all__ = ["Expected", "Trust", "context_of"]


class Trust(msgspec.Struct, frozen=True):
    """The certificates in `file` (PEM) are believed, and no others.

    With `pinned`, it is the node's own certificate, from the state folder it has on this machine: whoever shows that
    one is the node, under whatever name.
    """

    file: str
    pinned: bool = False


class Expected(msgspec.Struct, frozen=True):
    """The other end is to be `name`, whatever its address, by a certificate that `context` believes.

    What this end shows of itself is in the context, too.
    """

    context: ssl.SSLContext
    name: str


def context_of(trust: Trust | None) -> ssl.SSLContext:
    """What a client checks certificates with; None is the system's authorities. Reads files.

    Raises `PreconditionFailed` for a file that cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=None if trust is None else trust.file)
    except (OSError, ssl.SSLError) as error:
        where = "this system" if trust is None else trust.file
        raise PreconditionFailed(f"cannot use the certificates of {where}: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if trust is not None and trust.pinned:
        context.check_hostname = False  # the name in it is the one that others know the node by
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
