"""Those who wait for a place in the batch, in the order of a policy; hot: whenever one gets a place.

Who had a place already and gave it up for want of pages is the next one, before all of its class: what it had computed
may still be cached.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator

from microkernel.policy import Claim, Entry, Policy
from services.inference.engine.sequence import Sequence

__all__ = ["Line"]


class Line:
    """A queue of sequences."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._returning: deque[Sequence] = deque()

    def __len__(self) -> int:
        return len(self._policy) + len(self._returning)

    def __iter__(self) -> Iterator[Sequence]:
        """All that wait, in no order."""
        yield from tuple(self._returning)
        for entry in self._policy.entries():
            yield entry.item

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.entry is not None or sequence in self._returning

    @property
    def urgency(self) -> int | None:
        """The rank of whose turn is next, where classes have a meaning and somebody waits."""
        if not self._policy.preempts:
            return None
        head = self._policy.first()
        ranks = [] if head is None else [head.claim.process_class.rank]
        ranks += [sequence.rank for sequence in self._returning]
        return min(ranks, default=None)

    @property
    def preempts(self) -> bool:
        """Whether who is of a more urgent class takes the place of others."""
        return self._policy.preempts

    def add(self, sequence: Sequence) -> None:
        """It waits for its turn."""
        sequence.entry = self._policy.enter(sequence.claim, sequence)

    def add_first(self, sequence: Sequence) -> None:
        """It is the next."""
        self._returning.appendleft(sequence)

    def remove(self, sequence: Sequence) -> None:
        """It waits no longer."""
        if sequence.entry is None:
            self._returning.remove(sequence)
            return
        self._policy.leave(sequence.entry)
        sequence.entry = None

    def in_turn(self) -> Generator[Sequence, None, None]:
        """One after the other, in order. Who is not removed waits as before once the generator is closed."""
        returning, chosen = deque(self._returning), list[Entry]()
        try:
            while True:
                head = self._policy.first()
                if returning and (head is None or self._goes_before(returning[0], head)):
                    yield returning.popleft()
                elif head is not None:
                    self._policy.choose()
                    chosen.append(head)
                    yield head.item
                else:
                    return
        finally:
            for entry in chosen:
                self._policy.settle(entry)
                if entry.item.entry is entry:
                    self.add(entry.item)

    def schedule_by(self, policy: Policy) -> None:
        """Have another order from now on."""
        policy.take_over(self._policy)
        for entry in policy.entries():
            entry.item.entry = entry
        self._policy = policy

    def charge(self, claim: Claim, seconds: float) -> None:
        """A sequence of that claim has had the device for so long."""
        self._policy.charge(claim, seconds)

    def why(self, sequence: Sequence) -> str:
        """Why it waits, as the rest of a sentence that begins with "waits"."""
        if sequence.entry is None:
            return "as the next one: it gave its place up when pages were short"
        return self._policy.why(sequence.entry)

    def _goes_before(self, sequence: Sequence, head: Entry) -> bool:
        return not self._policy.preempts or sequence.rank <= head.claim.process_class.rank
