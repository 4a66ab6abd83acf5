"""Who has to be ready first goes first (EDF: Liu and Layland, Journal of the ACM 20, 1973)."""

from __future__ import annotations

from microkernel.policy import Claim, Entry, Ordered, ProcessClass, counted

__all__ = ["Deadline"]

# What work without a deadline is taken to have, in seconds from when it came; so it gets its turn, too.
PATIENCE = {ProcessClass.INTERACTIVE: 10.0, ProcessClass.BATCH: 600.0, ProcessClass.BACKGROUND: 86_400.0}


class Deadline(Ordered):
    """By deadline: where all can be met on one device, they are."""

    name = "deadline"
    preempts = False

    def key(self, claim: Claim) -> float:
        return claim.since + PATIENCE[claim.process_class] if claim.deadline is None else claim.deadline

    def why(self, entry: Entry) -> str:
        before = len(self.before(entry))
        if not before:
            return "for the device: it is the next"
        have = "has an earlier deadline" if before == 1 else "have earlier deadlines"
        return f"behind {counted(before)} that {have}"
