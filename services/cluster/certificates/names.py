"""The names in certificates: one for each node, and one for the node that lets others join."""

from __future__ import annotations

import re

from microkernel.errors import Invalid

__all__ = ["ADMITTING", "DOMAIN", "check_node", "host_of", "node_of"]

DOMAIN = "microkernel.internal"  # `.internal` is for private use (ICANN, 2024): it never leads anywhere
ADMITTING = f"admitting.{DOMAIN}"
_SUFFIX = f".nodes.{DOMAIN}"
# One label of a host's name (RFC 1123). In lower case: TLS takes N1 and n1 for the same name.
_NODE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def check_node(node: str) -> str:
    """`node`, if it can stand in a certificate. Raises `Invalid`."""
    if not _NODE.fullmatch(node):
        raise Invalid(
            f"'{node[:64]}' cannot be the name of a node in a cluster: it has 1 to 63 of a-z, 0-9 and '-',"
            " and no '-' at its ends",
            field="node",
        )
    return node


def host_of(node: str) -> str:
    """The name that the certificate of `node` is for, whatever address it is reached by. Raises `Invalid`."""
    return check_node(node) + _SUFFIX


def node_of(host: str) -> str | None:
    """The node whose certificate is for `host`; None for a name of another kind."""
    node = host.removesuffix(_SUFFIX)
    return node if node != host and _NODE.fullmatch(node) else None
