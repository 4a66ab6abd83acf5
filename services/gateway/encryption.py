"""TLS of the gateway: the certificate it shows, and its key."""

from __future__ import annotations

import ssl

from microkernel.errors import Invalid, PreconditionFailed

__all__ = ["HANDSHAKE_TIMEOUT", "server_context"]

HANDSHAKE_TIMEOUT = 10.0  # seconds


def server_context(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """What the gateway encrypts with, TLS 1.2 or later; None without a certificate. Reads both files (PEM).

    Without `key`, it is in the certificate's file. Raises `Invalid` for a key without a certificate, and
    `PreconditionFailed` for files that cannot be used.
    """
    if certificate is None:
        if key is not None:
            raise Invalid("a key is of no use without its certificate", field="certificate")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as error:
        files = certificate if key is None else f"{certificate} and {key}"
        why = "they do not fit each other, or are no PEM" if isinstance(error, ssl.SSLError) else error
        raise PreconditionFailed(
            f"cannot use the certificate and the key in {files}: {why}",
            remedy="both are PEM files, the key without a password, that the node can read",
        ) from error
    return context


def _no_password() -> str:
    """Asked for the password of a key; without this, OpenSSL would ask at the terminal and hold the loop."""
    raise ValueError("the key has a password")
