"""Which decoder a model gets: our kernels where they know the device and the model, or else plain torch.

What neither knows is computed by transformers, where that is installed and knows it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec
import torch

from formats.checkpoint.checkpoint import Checkpoint
from microkernel.errors import Overloaded, PreconditionFailed
from services.inference.eager import decoder as eager
from services.inference.eager.pages import page_bytes as eager_page_bytes
from services.inference.engine.forward import Decoder, PageDtype
from services.inference.foreign.folder import ForeignFolder, page_estimate
from services.inference.native import weights as packed
from services.inference.native.build import open_kernels
from services.inference.native.decoder import NativeDecoder
from services.inference.native.library import Kernels, Team
from services.inference.native.pages import page_bytes as native_page_bytes

__all__ = ["Computing", "Plan"]


class Plan(Protocol):
    """How a model will be computed, before its weights are read: what it takes, and why this way."""

    @property
    def why(self) -> str:
        """Why not by our kernels; empty where they compute it."""
        ...

    @property
    def weight_bytes(self) -> int:
        """What the weights will take."""
        ...

    @property
    def page_bytes(self) -> int:
        """What each page will take."""
        ...

    def make(self) -> Decoder:
        """Read the weights; takes seconds. Raises `DataLoss`, and `Overloaded` where memory is short."""
        ...


class Computing:
    """What a device computes with: its kernels and their threads, made when the first model asks for them.

    Used on the device's thread only.
    """

    def __init__(
        self,
        device: torch.device,
        cores: int,
        folder: Path | None,
        *,
        spread: int | None = None,
        kernels: bool = True,
        flex: bool = False,
        page_dtype: PageDtype = "bfloat16",
    ) -> None:
        """Kernels have a thread for each of `cores`, torch's operations have `spread` (None: as many).

        `folder` keeps what is built and packed for the next start; None keeps nothing. With `flex`, accelerators attend
        by torch's flex_attention.
        """
        self.device = device
        self._cores = cores
        self.spread = spread or cores  # threads of torch's operations, in models that are made from now on
        self._folder = folder
        self._wanted = kernels
        self._flex = flex
        self._page_dtype: PageDtype = page_dtype
        self._kernels: Kernels | None = None
        self._team: Team | None = None
        self._prepared = False
        self._missing = ""

    @property
    def prepared(self) -> bool:
        """Whether `prepare` has been done."""
        return self._prepared

    def prepare(self) -> None:
        """Find the kernels or build them, which takes seconds, once for a machine; and start their threads."""
        if self._prepared:
            return
        self._prepared = True
        if self.device.type != "cpu":
            self._missing = f"there are no kernels for {self.device.type}"
        elif not self._wanted:
            self._missing = "the settings ask for torch"
        else:
            try:
                self._kernels = open_kernels(None if self._folder is None else self._folder / "kernels")
                self._team = self._kernels.team(self._cores)
            except (PreconditionFailed, Overloaded) as error:
                self._missing = error.message

    def plan(self, checkpoint: Checkpoint | ForeignFolder, digest: str | None) -> Plan:
        """How to compute this model. `digest` names its content, for what is kept of it."""
        if isinstance(checkpoint, ForeignFolder):
            return _Foreign(checkpoint, self.device, self.spread)
        self.prepare()
        why = self._missing or packed.fits(checkpoint.config) or ""
        if why or self._kernels is None or self._team is None:
            return _Eager(checkpoint, self.device, self.spread, self._page_dtype, why, self._flex)
        file = None
        if self._folder is not None and digest is not None:
            file = self._folder / "weights" / packed.file_name(digest, self._kernels.variant)
        return _Native(checkpoint, self._kernels, self._team, file, self._page_dtype)

    def close(self) -> None:
        """End the threads; no decoder made here may compute any more."""
        if self._team is not None:
            self._team.close()
        self._team = None


class _Native(msgspec.Struct, frozen=True):
    checkpoint: Checkpoint
    kernels: Kernels
    team: Team
    file: Path | None
    page_dtype: PageDtype
    why: str = ""

    @property
    def weight_bytes(self) -> int:
        return packed.packed_bytes(self.checkpoint, self.kernels)

    @property
    def page_bytes(self) -> int:
        return native_page_bytes(self.checkpoint.config, self.page_dtype)

    def make(self) -> NativeDecoder:
        weights = packed.open_weights(self.checkpoint, self.kernels, file=self.file)
        return NativeDecoder(self.checkpoint, weights, self.team, page_dtype=self.page_dtype)


class _Eager(msgspec.Struct, frozen=True):
    checkpoint: Checkpoint
    device: torch.device
    threads: int
    page_dtype: PageDtype
    why: str
    flex: bool

    @property
    def dtype(self) -> torch.dtype:
        return eager.choose_dtype(self.device)

    @property
    def weight_bytes(self) -> int:
        return eager.weight_bytes(self.checkpoint, self.device, self.dtype)

    @property
    def page_bytes(self) -> int:
        return eager_page_bytes(self.checkpoint.config, self.dtype, self.page_dtype)

    def make(self) -> eager.Decoder:
        return eager.Decoder(
            self.checkpoint,
            device=self.device,
            dtype=self.dtype,
            threads=self.threads,
            flex=self.flex,
            page_dtype=self.page_dtype,
        )


class _Foreign(msgspec.Struct, frozen=True):
    folder: ForeignFolder
    device: torch.device
    threads: int

    @property
    def why(self) -> str:
        return f"{self.folder.refused}, but by transformers"

    @property
    def dtype(self) -> torch.dtype:
        return eager.choose_dtype(self.device)

    @property
    def weight_bytes(self) -> int:
        return self.folder.config.parameters * self.dtype.itemsize

    @property
    def page_bytes(self) -> int:
        return page_estimate(self.folder, self.dtype.itemsize)

    def make(self) -> Decoder:
        from services.inference.foreign.decoder import ForeignDecoder  # noqa: PLC0415 - it imports an extra

        return ForeignDecoder(self.folder, device=self.device, dtype=self.dtype, threads=self.threads)
