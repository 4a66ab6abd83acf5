"""What the node itself keeps, as entries: its configuration and, where secrets are asked for, its tokens.

The configuration is that of the boot. It is put beside what is restored, and no boot takes it by itself: it names
plugins, which are code, and paths of the machine that it comes from. Passwords in its URLs are left out unless secrets
are asked for.
"""

from __future__ import annotations

import re
import tomllib

from microkernel import durable
from microkernel.authentication import KEY_NAME, REVOKED, Tokens, check_kept
from microkernel.errors import DataLoss, Invalid
from microkernel.portable import EntryPiece
from microkernel.root import Root

__all__ = ["CONFIG", "LARGEST", "exported", "imported"]

CONFIG = "config.toml"
LARGEST = 32 << 20  # bytes in all; revocations are at most 65,536 lines
MASKED = "***"
_PASSWORD = re.compile(r"(://[^/\s@:\"']*):[^/\s@\"']*@")
_MASKED_PASSWORD = f":{MASKED}@"


def exported(config: str, tokens: Tokens, *, secrets: bool) -> list[EntryPiece]:
    """The entries, in order. It blocks: for threads."""
    kept = tokens.kept() if secrets else {}
    note = ""
    if config and not secrets:
        masked, count = _PASSWORD.subn(rf"\1{_MASKED_PASSWORD}", config)
        note = f"{count} passwords in URLs of the configuration are left out (--secrets)" if count else ""
        config = masked
    if config:
        kept[CONFIG] = config.encode()
    return [EntryPiece(name=name, content=kept[name], note=note if name == CONFIG else "") for name in sorted(kept)]


def imported(root: Root, entries: dict[str, bytes]) -> tuple[str, ...]:
    """Write them into a state folder; what is to be told of them. It blocks. Raises `DataLoss` for damaged ones."""
    if KEY_NAME in entries and REVOKED not in entries:
        raise DataLoss(f"the node's own '{REVOKED}' is missing: tokens that were revoked would come back")
    notes = []
    for name, content in entries.items():
        _check(name, content)
        durable.replace(root.path / name, content)
    if CONFIG in entries:
        notes.append(f"the configuration is in {CONFIG}: boot with --config, once you have read it")
        if _MASKED_PASSWORD.encode() in entries[CONFIG]:
            notes.append(f"passwords in its URLs were left out, and are {MASKED}")
    if KEY_NAME not in entries:
        notes.append("tokens that were given out are not valid here: the key that signs them is a new one")
    return tuple(notes)


def _check(name: str, content: bytes) -> None:
    """Raises `DataLoss` for a file that the state folder does not have, or that no boot could read."""
    try:
        if name == CONFIG:
            tomllib.loads(content.decode())
        else:
            check_kept(name, content)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, Invalid) as error:
        raise DataLoss(f"the node's own '{name}' is damaged: {error}") from error
