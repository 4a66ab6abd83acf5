"""What a node shows when it opens a link to another: its name, the number of its life, and the cluster's secret."""

from __future__ import annotations

import hmac
import re

from microkernel.message import Message

__all__ = ["PREFIX", "Passport", "read_passport"]

PREFIX = "mknode1."
_TEXT = re.compile(r"mknode1\.([A-Za-z0-9][A-Za-z0-9_-]{0,62})\.([0-9]{1,16})\.([A-Za-z0-9_-]{16,128})")


class Passport(Message):
    """Which node it is, and in which of its lives."""

    node: str
    life: int

    def text(self, secret: str) -> str:
        """As it is shown."""
        return f"{PREFIX}{self.node}.{self.life}.{secret}"


def read_passport(text: str, secret: str) -> Passport | None:
    """Who shows it; None for anything but a passport with the cluster's secret, which is compared in constant time."""
    found = _TEXT.fullmatch(text)
    if found is None or not hmac.compare_digest(found[3].encode(), secret.encode()):
        return None
    return Passport(found[1], int(found[2]))
