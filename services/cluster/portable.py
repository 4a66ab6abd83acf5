"""The keys of a cluster that began on this node, on their way out and into another machine's folder. It blocks.

Who has them is the cluster: it lets nodes in, and signs for them. So they leave with secrets only. A node that has
joined a cluster gives nothing: it is let in anew. This node's own certificate is made by the next boot.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from microkernel.errors import DataLoss, MicrokernelError
from microkernel.portable import EntryPiece, put_file
from services.cluster.standing import OWN, STANDING, Standing

__all__ = ["LARGEST", "exported", "imported"]

LARGEST = 4 << 20  # bytes in all
AUTHORITY, REFUSED = "authority/authority.pem", "refused.json"
NAMES = (AUTHORITY, REFUSED, STANDING)  # in their order


def exported(folder: Path) -> list[EntryPiece]:
    """The entries of a service's folder, in order; none of a node that has joined, or was never in a cluster."""
    found = []
    for name in NAMES:
        path = folder / OWN / name
        if path.exists():
            found.append(EntryPiece(name=name, content=path.read_bytes()))
    return found if any(piece.name == STANDING for piece in found) else []


def imported(folder: Path, entries: dict[str, bytes], now: float) -> tuple[str, ...]:
    """Write them into the folder of a node that is restored at Unix time `now`; what is to be told of them.

    Raises `DataLoss` for what no boot could use.
    """
    if not entries:
        return ()
    for name, content in entries.items():
        if name not in NAMES:
            raise DataLoss(f"cluster: '{name[:80]}' is nothing that it keeps")
        put_file(folder / OWN / name, content)
    try:
        standing = msgspec.json.decode(entries.get(STANDING, b""), type=Standing)
        if AUTHORITY in entries or REFUSED in entries:
            _check_keys(folder / OWN, now)
    except (msgspec.DecodeError, UnicodeDecodeError, MicrokernelError) as error:
        raise DataLoss(f"cluster: the keys of the cluster are damaged: {error}") from error
    return (f"it is '{standing.node}' that lets nodes in, as before: the node that it was may not run any more",)


def _check_keys(folder: Path, now: float) -> None:
    """Read them as the next boot does. Raises what that raises."""
    # `cryptography` takes a tenth of a second: only who has keys loads it.
    from services.cluster.certificates.authority import Authority  # noqa: PLC0415
    from services.cluster.certificates.refusals import Refusals  # noqa: PLC0415

    Authority((folder / AUTHORITY).parent, now=now)
    Refusals(folder / REFUSED, now=now)
