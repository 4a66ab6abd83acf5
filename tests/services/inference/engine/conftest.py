"""The kernels' decoder of a tiny model, where there are kernels for this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import write_gguf

from formats.checkpoint.checkpoint import open_checkpoint
from microkernel.errors import PreconditionFailed
from services.inference.native.build import open_kernels
from services.inference.native.decoder import NativeDecoder
from services.inference.native.weights import open_weights


@pytest.fixture(scope="session")
def native_decoders(tmp_path_factory: pytest.TempPathFactory):
    """By what their pages are kept in."""
    folder: Path = tmp_path_factory.mktemp("kernels")
    folder.chmod(0o700)
    try:
        kernels = open_kernels(folder)
    except PreconditionFailed as error:
        pytest.skip(error.message)
    checkpoint = open_checkpoint(write_gguf(folder / "tiny.gguf", context=512))
    team = kernels.team(2)
    weights = open_weights(checkpoint, kernels, file=None)
    yield {dtype: NativeDecoder(checkpoint, weights, team, page_dtype=dtype) for dtype in ("bfloat16", "int8")}
    team.close()


@pytest.fixture(scope="session")
def native_decoder(native_decoders):
    return native_decoders["bfloat16"]
