"""Every architecture in every format, on the kernels and on torch, against transformers with the dequantised weights.

What the kernels lose they lose by rounding: the inputs of products to 8 bits, a scale for each 16 of them, or to
bfloat16 where weights have 16 bits or more, and queries, keys and values to bfloat16. So transformers is run a second
time with all of these rounded, and the kernels may be as far from the exact logits as that is, and a tenth more.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import gguf
import pytest
import torch
from forward_passes import in_chunks, one_by_one
from tiny_models import random_weights, tiny_decoder, write_gguf

from formats.checkpoint.checkpoint import open_checkpoint
from services.inference.eager.decoder import choose_dtype
from services.inference.native.decoder import NativeDecoder
from services.inference.native.weights import open_weights

pytestmark = [pytest.mark.peer]

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "BF16", "F16", "F32")
TOKENS = [int(token) for token in torch.randint(0, 256, (80,), generator=torch.Generator().manual_seed(5))]
WINDOW = 23


class Known(NamedTuple):
    """A model's file, its exact logits, and how far from them rounded inputs lead."""

    path: Path
    exact: torch.Tensor
    rounded: float


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The relative error in the Euclidean norm."""
    return float((got - expected).norm() / expected.norm())


def in_bytes(x: torch.Tensor) -> torch.Tensor:
    groups = x.unflatten(-1, (-1, 16))
    step = groups.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return ((groups / step).round() * step).flatten(-2)


def in_bfloat16(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().float()


@pytest.fixture(scope="module", params=[(name, kind) for name in ARCHITECTURES for kind in FORMATS], ids="-".join)
def known(request, tmp_path_factory) -> Known:
    pytest.importorskip("transformers")
    pytest.importorskip("llama_cpp")
    from reference_model import logits_of, reference_model

    name, kind = request.param
    shape = {"head_dim": 64, "hidden": 256, "ffn": 512}
    made = random_weights(tied=name != "llama", bias=name == "qwen2", qk_norm=name == "qwen3", **shape)
    fields = {"llama.attention.sliding_window": WINDOW} if name == "mistral" else {}
    path = write_gguf(
        tmp_path_factory.mktemp("known") / "tiny.gguf",
        architecture="llama" if name == "mistral" else name,  # as GGUF has it
        kind=gguf.GGMLQuantizationType[kind],
        weights=made,
        metadata=fields,
        **shape,
    )
    exact = logits_of(reference_model(path), TOKENS)
    wide = kind in ("BF16", "F16", "F32")
    rounding = in_bfloat16 if wide else in_bytes
    model = reference_model(path, round_weights=in_bfloat16 if wide else None)
    for part, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (rounding(inputs[0]),))
        if part.endswith(("q_proj", "k_proj", "v_proj")):
            module.register_forward_hook(lambda _, __, output: in_bfloat16(output))
    return Known(path, exact, error(logits_of(model, TOKENS), exact))


@pytest.mark.parametrize("feed", [in_chunks, one_by_one], ids=["prompt", "answer"])
def test_the_kernels_are_as_near_as_their_inputs_rounding_allows(known, feed, opened, variant):
    kernels, checkpoint = opened(variant), open_checkpoint(known.path)
    team = kernels.team(2)
    got = feed(NativeDecoder(checkpoint, open_weights(checkpoint, kernels, file=None), team), TOKENS)
    team.close()
    assert error(got, known.exact) < 1.1 * known.rounded


def test_in_pages_of_8_bits_the_kernels_are_little_further_away(known, opened, variant):
    kernels, checkpoint = opened(variant), open_checkpoint(known.path)
    team = kernels.team(2)
    weights = open_weights(checkpoint, kernels, file=None)
    got = in_chunks(NativeDecoder(checkpoint, weights, team, page_dtype="int8"), TOKENS)
    team.close()
    assert error(got, known.exact) < 1.1 * known.rounded + 0.01


def test_torch_is_exact_in_float32(known):
    assert error(in_chunks(tiny_decoder(known.path), TOKENS), known.exact) < 1e-4


def test_torch_is_near_in_what_it_is_served_in(known):
    assert error(in_chunks(tiny_decoder(known.path, choose_dtype(torch.device("cpu"))), TOKENS), known.exact) < 0.03
