"""Which decoder a model gets: our kernels where they know the device and the model, or else plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec
import torch

from microkernel.errors import Overloaded, PreconditionFailed
from services.inference.checkpoint.checkpoint import Checkpoint
from services.inference.eager import decoder as eager
from services.inference.eager.pages import page_bytes as eager_page_bytes
from services.inference.engine.forward import Decoder, PageDtype
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
        kernels: bool = True,
        page_dtype: PageDtype = "bfloat16",
    ) -> None:
        """`folder` keeps what is built and packed for the next start; None keeps nothing."""
        self.device = device
        self._cores = cores
        self._folder = folder
        self._wanted = kernels
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

    def plan(self, checkpoint: Checkpoint, digest: str | None) -> Plan:
        """How to compute this model. `digest` names its content, for what is kept of it."""
        self.prepare()
        why = self._missing or packed.fits(checkpoint.config) or ""
        if why or self._kernels is None or self._team is None:
            return _Eager(checkpoint, self.device, self._cores, self._page_dtype, why)
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
    cores: int
    page_dtype: PageDtype
    why: str

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
            self.checkpoint, device=self.device, dtype=self.dtype, threads=self.cores, page_dtype=self.page_dtype
        )
