"""The decoder over transformers: a state for each sequence, and those that decode in one batch; hot: every step.

Texts are read one sequence at a time. Single tokens of several sequences are computed together where the model allows
it: padded to the longest, if only a share of that is padding, so that memory stays near what pages account for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from formats.checkpoint.adapter import Adapter
from microkernel.errors import Unimplemented
from services.inference.engine.forward import Part
from services.inference.foreign.folder import ForeignFolder
from services.inference.foreign.model import CausalModel
from services.inference.foreign.states import ForeignStates, State

__all__ = ["ForeignDecoder"]

PADDING = 0.25  # of what a batch holds
SLACK = 128  # tokens of padding a sequence that cost less than another pass over the weights


class ForeignDecoder:
    """A model that transformers computes; used on its device's thread only."""

    paged = False
    invariant = False

    def __init__(
        self, folder: ForeignFolder, *, device: torch.device, dtype: torch.dtype, threads: int | None = None
    ) -> None:
        """Read the weights; raises `Unsupported`, `DataLoss`, and `Overloaded` where memory is short.

        On a CPU a step takes `threads` threads; None leaves torch's number as it is.
        """
        self.config = folder.config
        self.device = device
        self._threads = threads
        self._set_threads()
        self._model = CausalModel(folder, device=device, dtype=dtype)
        self.layout = f"foreign-1-{device.type}-{dtype}".replace("torch.", "")

    @property
    def weight_bytes(self) -> int:
        """What the weights take in memory."""
        return self._model.weight_bytes

    def storage(self, pages: int) -> ForeignStates:  # noqa: ARG002 - states are made as they are needed
        """Room for states; the engine counts its pages."""
        return ForeignStates(self._model)

    def adapter_bytes(self, adapter: Adapter) -> int:  # noqa: ARG002 - of the protocol
        """Raises `Unimplemented`, as `add_adapter` does."""
        raise Unimplemented(
            f"adapters beside models of the architecture '{self.config.architecture}' are not computed yet",
            remedy="merge the adapter into the model",
        )

    def add_adapter(self, adapter: Adapter) -> int:
        """Raises `Unimplemented`: transformers would add it to every sequence of a step."""
        return self.adapter_bytes(adapter)

    def remove_adapter(self, adapter: int) -> None:
        """There is none."""

    @torch.inference_mode()
    def forward(self, storage: ForeignStates, parts: Sequence[Part]) -> torch.Tensor:
        """Compute the parts: float32 logits [sum of wanted, vocabulary], in their order.

        Raises `PreconditionFailed` for a part that does not go on from where its sequence is, and `RuntimeError` for
        whatever the library raises.
        """
        self._set_threads()
        try:
            return self._forward(storage, parts)
        except (ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
            raise RuntimeError(f"{self._model.where}: {type(error).__name__}: {error}") from error

    def _forward(self, storage: ForeignStates, parts: Sequence[Part]) -> torch.Tensor:
        logits = [torch.empty(0, self.config.vocab_size, device=self.device)] * len(parts)
        decoding: list[tuple[State, int]] = []
        for index, part in enumerate(parts):
            state = storage.state(part.table, part.start)
            if len(part.tokens) == 1 and part.start and not state.pending:
                decoding.append((state, index))
            else:
                logits[index] = self._read(state, part)
        for group in self._groups(decoding):
            states = [state for state, _ in group]
            rows = self._decode(storage, states, [parts[index].tokens[0] for _, index in group])
            for row, (_, index) in zip(rows, group, strict=True):
                logits[index] = row[None][: parts[index].wanted]
        return torch.cat(logits).float()

    def _read(self, state: State, part: Part) -> torch.Tensor:
        """Give a state several tokens; the logits [wanted, vocabulary] of the last."""
        state.pending += part.tokens
        state.length += len(part.tokens)
        if self._model.reads_at_once and not part.wanted:
            return torch.empty(0, self.config.vocab_size, device=self.device)  # the next part completes the text
        tokens, state.pending = state.pending, []
        start = state.length - len(tokens)
        step = 1 if self._model.reads_at_once and start else len(tokens)
        rows = [
            self._run(state, tokens[first : first + step], start + first, keep=min(step, max(1, part.wanted)))
            for first in range(0, len(tokens), step)
        ]
        logits = torch.cat(rows)
        return logits[len(logits) - part.wanted :]

    def _run(self, state: State, tokens: list[int], start: int, *, keep: int) -> torch.Tensor:
        positions = torch.arange(start, start + len(tokens), device=self.device)
        return self._model.run(state.cache, self._tensor([tokens]), positions[None], None, keep)[0]

    def _decode(self, storage: ForeignStates, states: list[State], tokens: list[int]) -> torch.Tensor:
        """One token for each state: logits [states, vocabulary]."""
        lengths = [state.length for state in states]
        cache = states[0].cache if len(states) == 1 else storage.gather(states).cache
        mask = None
        if min(lengths) < max(lengths):
            places = torch.arange(max(lengths) + 1, device=self.device)
            mask = (places >= max(lengths) - self._tensor(lengths)[:, None]).long()
        column = self._tensor(tokens)[:, None]
        logits = self._model.run(cache, column, self._tensor(lengths)[:, None], mask, 1)
        for state in states:
            state.length += 1
        return logits[:, 0]

    def _groups(self, decoding: list[tuple[State, int]]) -> list[list[tuple[State, int]]]:
        """What can be computed in one pass each."""
        if not self._model.merges:
            return [[one] for one in decoding]
        groups: list[list[tuple[State, int]]] = []
        for one in sorted(decoding, key=lambda one: one[0].length):
            if groups and self._joins(one[0].length, [state.length for state, _ in groups[-1]]):
                groups[-1].append(one)
            else:
                groups.append([one])
        return groups

    def _joins(self, length: int, lengths: list[int]) -> bool:
        """Whether a sequence of `length`, the longest, may be in a batch with those of `lengths`."""
        if not self._model.attends or length == lengths[0]:
            return True
        count, total = len(lengths) + 1, sum(lengths) + length
        return self._model.pads and count * length - total <= PADDING * total + SLACK * count

    def _tensor(self, values: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(values, device=self.device)

    def _set_threads(self) -> None:
        if self._threads is not None and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)  # as in `eager`
