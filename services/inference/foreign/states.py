"""What sequences hold, beside pages that only count: a state of transformers each, found by its first page; hot.

A page belongs to one sequence at a time here, so its first page names it. States of sequences that decode together stay
merged for as long as they do.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers.cache_utils import DynamicCache

from microkernel.errors import PreconditionFailed
from services.inference.foreign.batch import merge, split
from services.inference.foreign.model import CausalModel

__all__ = ["Batch", "ForeignStates", "State"]


class State:
    """What one sequence has computed: `length` tokens, of which the last `pending` are yet to be given to the model."""

    __slots__ = ("_cache", "batch", "length", "pending")

    def __init__(self, cache: DynamicCache) -> None:
        self._cache: DynamicCache | None = cache
        self.batch: Batch | None = None
        self.length = 0
        self.pending: list[int] = []

    @property
    def cache(self) -> DynamicCache:
        """Its own, taken out of its batch if it is in one."""
        if self.batch is not None:
            self.batch.dissolve()
        assert self._cache is not None
        return self._cache

    @cache.setter
    def cache(self, cache: DynamicCache | None) -> None:
        self._cache = cache


class Batch:
    """Sequences that decode together, each with the tokens that its `length` says, and their merged state."""

    def __init__(self, members: Sequence[State]) -> None:
        self.cache = merge([state.cache for state in members], [state.length for state in members])
        self.members = list(members)
        for state in members:
            state.cache, state.batch = None, self

    def dissolve(self) -> None:
        """Give each member its own state."""
        for state, cache in zip(self.members, split(self.cache, [state.length for state in self.members]), strict=True):
            state.cache, state.batch = cache, None


class ForeignStates:
    """The states of all sequences; pages are numbers that the engine counts with."""

    def __init__(self, model: CausalModel) -> None:
        self.page_bytes = model.page_bytes
        self._model = model
        self._states: dict[int, State] = {}

    def __len__(self) -> int:
        """How many sequences have a state."""
        return len(self._states)

    def table(self, pages: Sequence[int]) -> int:
        """What names a sequence: its first page."""
        return pages[0]

    def state(self, first: int, length: int) -> State:
        """The state of the sequence whose first page it is, cut to `length` tokens if it has more.

        Raises `PreconditionFailed` where it has fewer, or cannot be cut.
        """
        state = self._states.get(first)
        if state is None or length == 0:
            self.clear(first)
            state = self._states[first] = State(self._model.fresh())
        if state.length > length:
            self._cut(state, length)
        if state.length != length:
            raise PreconditionFailed(f"the sequence has {state.length} tokens, and is to go on from {length}")
        return state

    def gather(self, members: Sequence[State]) -> Batch:
        """The batch of these, merged anew where they have not been one."""
        batch = members[0].batch
        if batch is None or batch.members != list(members):
            batch = Batch(members)
        return batch

    def clear(self, page: int) -> None:
        """Forget the state of the sequence whose first page it is, if there is one."""
        state = self._states.pop(page, None)
        if state is not None and state.batch is not None:
            state.batch.dissolve()

    @property
    def elastic(self) -> bool:
        """True: fewer pages are fewer states, and a state's memory goes with it."""
        return True

    def give_back(self, pages: Sequence[int]) -> None:
        """A page that nobody holds has no memory."""

    def release(self) -> None:
        """Forget all states."""
        self._states.clear()

    def copy(self, source: int, target: int) -> None:
        """Raises `PreconditionFailed`: there is nothing in a page."""
        raise _nothing(f"page {source} cannot be copied to {target}")

    def read(self, page: int) -> bytes:
        """Raises `PreconditionFailed`: there is nothing in a page."""
        raise _nothing(f"page {page} cannot be read")

    def write(self, page: int, content: bytes) -> None:
        """Raises `PreconditionFailed`: there is nothing in a page."""
        raise _nothing(f"{len(content)} bytes cannot be written to page {page}")

    def _cut(self, state: State, length: int) -> None:
        computed = state.length - len(state.pending)
        if length < computed:
            try:
                if not state.cache.is_croppable:
                    raise RuntimeError("a recurrent state cannot go back")
                state.cache.crop(length - computed)
            except RuntimeError as error:  # the library's, for a window that has moved on
                raise PreconditionFailed(
                    f"a sequence of {state.length} tokens of {self._model.where} cannot be cut to {length}: {error}",
                    remedy="begin it anew",
                ) from error
        state.pending = state.pending[: max(0, length - computed)]
        state.length = length


def _nothing(what: str) -> PreconditionFailed:
    return PreconditionFailed(f"{what}: this model's states are not in pages")
