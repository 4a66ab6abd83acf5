"""Steps in which every sequence has one new token, in fixed shapes; hot: every step on accelerators.

At one token a sequence a GPU computes faster than Python can ask it: each of some hundred kernels a step takes
microseconds to launch. So such a step is recorded once for each shape as a CUDA graph, and replayed by one call. For
that it may not change its shapes: rows and pages are rounded up to powers of two, and what is too much computes on a
page that nobody reads. Where nothing can be recorded the same function runs as it is, which is how it is tested on a
CPU.
"""

from __future__ import annotations

import logging
import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from services.inference.cache.keys import PAGE
from services.inference.eager.attention import Attends
from services.inference.eager.pages import TensorPages
from services.inference.engine.forward import Part

__all__ = ["CudaGraphs", "FixedAttention", "FixedSteps", "Fused"]

LEAST_PAGES = 16  # of a shape: 256 tokens
MOST_STEPS = 64  # shapes that are kept; what was used longest ago goes. A graph takes some MB of the device
WARM_UPS = 2  # runs before one is recorded: libraries choose their kernels and take their space in the first

SAME = 0.05  # of the logits' length, by which two ways to attend may differ: bfloat16 has 8 bits, layers add up

Replay = Callable[[], torch.Tensor]
Fused = Callable[[TensorPages, torch.Tensor, torch.Tensor], Attends]  # of pages, positions and tables

_recording = threading.Lock()  # torch records one graph at a time in a process, and there may be several devices
_log = logging.getLogger("microkernel.inference")


class Computes(Protocol):
    """A decoder's part in it."""

    def through(self, tokens: torch.Tensor, attention: Attends) -> torch.Tensor:
        """Float32 logits [n, vocabulary] behind `tokens`, int64 [n]."""
        ...


class FixedSteps:
    """The shapes that were needed so far, of one decoder and one storage."""

    def __init__(
        self,
        decoder: Computes,
        device: torch.device,
        *,
        recorder: Callable[[Replay], Replay] | None = None,
        fused: Fused | None = None,
    ) -> None:
        """`recorder` makes a function that does again what the given one does.

        None: CUDA graphs where the device has them, and elsewhere nothing is recorded. `fused` attends in the place of
        `FixedAttention`, once its first step has given the same logits.
        """
        self._decoder = weakref.proxy(decoder)  # it has us: its weights are to be free when it is let go
        self._pinned = device.type == "cuda"
        self._recorder = CudaGraphs() if recorder is None and self._pinned else recorder
        self._fused = fused
        self._trusted = False
        self._storage: Callable[[], TensorPages | None] = lambda: None
        self._steps: OrderedDict[tuple[int, int], _Step] = OrderedDict()  # by rows and pages, last used last

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and pages of what is kept, last used last."""
        return list(self._steps)

    def run(self, storage: TensorPages, parts: Sequence[Part]) -> torch.Tensor:
        """Logits [n, vocabulary] of parts of one token each: the caller's own, on the device."""
        if storage is not self._storage():
            self.forget()
            self._storage = weakref.ref(storage)
        rows = _power_of_two(len(parts))
        pages = max(LEAST_PAGES, _power_of_two(max(part.start for part in parts) // PAGE + 1))
        step = self._steps.get((rows, pages))
        if step is None:
            step = self._steps[rows, pages] = _Step(self._decoder, storage, rows, pages, pinned=self._pinned)
            while len(self._steps) > MOST_STEPS:
                self._steps.popitem(last=False)
        self._steps.move_to_end((rows, pages))
        step.fill(parts)
        if step.replay is None:
            if self._fused is not None and not self._trusted:
                self._try(self._fused, step)
            step.attends = self._fused or FixedAttention
            step.replay = self._recorded(step)
        return step.replay()[: len(parts)].clone()  # the next step writes over it

    def forget(self) -> None:
        """Keep no shape: what was recorded knows addresses that have changed."""
        self._steps.clear()

    def _try(self, fused: Fused, step: _Step) -> None:
        """Compute a step both ways, which leaves the same behind: `fused` is used only where it gives the same."""
        try:
            expected = step.run()
            step.attends = fused
            difference = float((step.run() - expected).norm() / expected.norm())
        except Exception as error:  # noqa: BLE001 - compilers raise what they like, and there is another way
            why = str(error).partition("\n")[0]
        else:
            why = "" if difference < SAME else f"its logits differ by {difference:.3f} of their length"
        if why:
            _log.warning("attention is not fused, and pages are gathered: %s", why)
            self._fused = None
        self._trusted = not why

    def _recorded(self, step: _Step) -> Replay:
        if self._recorder is None:
            return step.run
        try:
            return self._recorder(step.run)
        except RuntimeError as error:
            _log.warning("steps cannot be recorded, and are computed kernel by kernel: %s", error)
            self._recorder = None
            return step.run


class _Step:
    """One shape: its inputs on the device, which are filled before each run."""

    def __init__(self, decoder: Computes, storage: TensorPages, rows: int, pages: int, *, pinned: bool) -> None:
        self.replay: Replay | None = None
        self.attends: Fused = FixedAttention
        self._decoder = decoder
        self._storage = weakref.proxy(storage)
        self._pinned = pinned
        with torch.inference_mode(mode=False):
            # A row is a token, its position, and its pages: one copy brings them all.
            self._inputs = torch.zeros(rows, 2 + pages, dtype=torch.int32, device=storage.device)

    def fill(self, parts: Sequence[Part]) -> None:
        """Bring the tokens of `parts`; rows behind them write the scratch page, and see one token there."""
        # Pinned memory of torch's own pool: it is given to nobody else before the copy is done.
        host = torch.empty(self._inputs.shape, dtype=torch.int32, pin_memory=self._pinned)
        rows = host.numpy()
        rows[:, :2] = 0
        rows[:, 2:] = self._storage.scratch
        for row, part in zip(rows, parts, strict=False):
            own = part.table.numpy()[: part.start // PAGE + 1]
            row[0], row[1], row[2 : 2 + len(own)] = part.tokens[0], part.start, own
            row[2 + len(own) :] = own[0]  # hidden, but read: a page of somebody else's might hold what is not finite
        self._inputs.copy_(host, non_blocking=True)

    def run(self) -> torch.Tensor:
        """Logits of all rows. Takes nothing but what is on the device, and asks it nothing."""
        inputs = self._inputs.long()
        return self._decoder.through(inputs[:, 0], self.attends(self._storage, inputs[:, 1], inputs[:, 2:]))


class FixedAttention:
    """One new token for each of some sequences, with nothing about them known but on the device."""

    def __init__(self, pages: TensorPages, positions: torch.Tensor, tables: torch.Tensor) -> None:
        """`positions` [n] of the new tokens, `tables` [n, pages] of numbers, both int64."""
        self.positions = positions
        self._pages = pages
        self._tables = tables
        self._page = tables.gather(1, positions[:, None] // PAGE).squeeze(1)
        self._offset = positions % PAGE
        self._seen: dict[int | None, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, layer: int, window: int | None, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        """Store `kv` [n, 2, kv heads, head size], attend with `q` [n, heads, head size]; [n, heads * head size]."""
        self._pages.store(layer, self._page, self._offset, kv)
        tables, mask = self._seen_in(window)
        keys, values = self._pages.load(layer, tables)
        grouped = q.reshape(q.shape[0], keys.shape[1], -1, q.shape[2])
        scores = torch.matmul(grouped, keys.transpose(2, 3)).float() * (1 / math.sqrt(q.shape[2]))
        out = torch.matmul(torch.softmax(scores + mask, -1).to(q.dtype), values)
        return out.reshape(q.shape[0], -1)

    def _seen_in(self, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The pages that are looked at [n, pages], and what is added to scores: float32 [n, 1, 1, tokens]."""
        if window not in self._seen:
            positions = self.positions[:, None]
            tables, first = self._tables, torch.zeros_like(positions)
            if window is not None and (count := window // PAGE + 2) < tables.shape[1]:
                first = (positions + 1 - window).clamp(min=0) // PAGE
                places = first + torch.arange(count, device=positions.device)
                tables = tables.gather(1, places.clamp(max=tables.shape[1] - 1))
            tokens = first * PAGE + torch.arange(tables.shape[1] * PAGE, device=positions.device)
            hidden = tokens > positions
            if window is not None:
                hidden |= tokens <= positions - window
            mask = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -math.inf)
            self._seen[window] = tables, mask[:, None, None, :]
        return self._seen[window]


class CudaGraphs:
    """Records on CUDA devices. The graphs share their space: they run one after the other, and none needs it then."""

    def __init__(self) -> None:
        self._pool: Any = None  # torch's handle
        self._beside: Any = None  # one stream for all: torch keeps what was freed for the stream that had it

    def __call__(self, run: Replay) -> Replay:
        """What `run` asks the device for, asked again by one call. Raises `RuntimeError`."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
            self._beside = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch's own
        here, beside = torch.cuda.current_stream(), self._beside
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                run()
        here.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may use the device meanwhile: one asks it for its free memory.
            with _recording, torch.cuda.graph(graph, self._pool, beside, capture_error_mode="thread_local"):
                logits = run()
        finally:
            torch.cuda.set_stream(here)  # torch does not come back to it where a recording has failed

        def replay() -> torch.Tensor:
            graph.replay()
            return logits

        return replay


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
