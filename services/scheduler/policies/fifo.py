"""Who came first goes first, whoever it is."""

from __future__ import annotations

from microkernel.policy import Claim, Entry, Ordered, counted

__all__ = ["Fifo"]


class Fifo(Ordered):
    """In the order in which work came, each to its end; classes, owners and nice values count for nothing."""

    name = "fifo"
    preempts = False

    def key(self, claim: Claim) -> float:
        return claim.came

    def why(self, entry: Entry) -> str:
        before = len(self.before(entry))
        return f"behind {counted(before)} that came before it" if before else "for the device: it is the next"
