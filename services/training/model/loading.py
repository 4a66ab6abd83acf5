"""A model to be trained: from a checkpoint, with an adapter or without, or a new one drawn from a seed.

A new one begins as GPT-2 and nanoGPT do (https://github.com/karpathy/nanoGPT): matrices normal with a deviation of
0.02, those that add to the stream (`attn_output`, `ffn_down`) by 0.02 / sqrt(2 * layers), norms one, biases zero.
"""

from __future__ import annotations

import math

import torch

from formats.checkpoint.adapter import Adapter
from formats.checkpoint.architecture import DecoderConfig, check_config, expected_shapes
from formats.checkpoint.checkpoint import GROUP, Blocks, Checkpoint, Dense, Weight
from formats.checkpoint.families import FAMILIES
from microkernel.errors import Invalid, Overloaded, PreconditionFailed
from services.training.config import MethodConfig, ModelConfig
from services.training.model.decoder import Decoder, choose_dtype
from services.training.model.flat import FlatParameters, Layout, lay_out
from services.training.model.four_bit import DenseMatrix, FourBitMatrix, Matrix, round_to_blocks
from services.training.model.layer_products import Weights
from services.training.model.lora import STACKS, fill_start, low_rank_shapes

__all__ = ["continue_adapter", "fresh_config", "open_model", "plan_layout"]

DEVIATION = 0.02
CONTEXT = 2048
MULTIPLE = 64  # words: a product with the vocabulary has no odd rows then


def fresh_config(model: ModelConfig, vocabulary: int) -> DecoderConfig:
    """The shape of a new model for so many words. Raises `Invalid` where sizes are missing or cannot be."""
    layers, hidden, heads, ffn = (_given(model, field) for field in ("layers", "hidden_size", "heads", "ffn_size"))
    if model.head_size is None and hidden % heads:
        raise Invalid(f"{hidden} dimensions cannot be shared by {heads} heads: give head_size", field="model.head_size")
    family = FAMILIES[model.architecture]
    config = DecoderConfig(
        architecture=family.name,
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        kv_heads=model.kv_heads or heads,
        head_dim=model.head_size or hidden // heads,
        ffn_size=ffn,
        vocab_size=-(-vocabulary // MULTIPLE) * MULTIPLE,
        context_length=model.context_length or CONTEXT,
        tied_embeddings=model.tied_embeddings,
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        quantization="F32",
    )
    return check_config(config, "the configuration")


def plan_layout(config: DecoderConfig, method: MethodConfig) -> Layout:
    """What is trained of such a model by that method, and where it lies in the flat tensors."""
    return lay_out(expected_shapes(config) if method.kind == "full" else low_rank_shapes(config, method))


def open_model(
    source: Checkpoint | DecoderConfig,
    method: MethodConfig,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    recompute: bool = False,
    seed: int = 0,
) -> Decoder:
    """The model of a checkpoint, or a new one of a shape, to be trained by `method` on `device` (a CPU).

    `dtype` is that of products and of frozen weights; None is `choose_dtype`. What is drawn depends on `seed` alone.
    Raises `DataLoss` for a damaged file, `PreconditionFailed` for an adapter beside a new model, and `Overloaded` where
    memory is short.
    """
    device = device or torch.device("cpu")
    dtype = dtype or choose_dtype(device)
    config = source if isinstance(source, DecoderConfig) else source.config
    try:
        flat = FlatParameters(plan_layout(config, method), device)
        if method.kind == "full":
            weights = _full(source, config, method, flat, seed)
        elif isinstance(source, DecoderConfig):
            raise PreconditionFailed("a new model has nothing that an adapter could be beside: train it in full")
        else:
            weights = _frozen(source, method, flat, dtype)
            fill_start(flat, seed)
        return Decoder(config, method, weights, dtype=dtype, recompute=recompute)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise Overloaded(
            f"a model of {config.parameters} weights does not fit into the memory of {device} to be trained",
            remedy="free memory, train an adapter (lora), with a base of 4 bits, or take a smaller model",
        ) from error


def continue_adapter(flat: FlatParameters, adapter: Adapter, method: MethodConfig) -> None:
    """Begin where `adapter` is; what it has no products for begins with none.

    Raises `Invalid` where it adds to matrices that `method` leaves out, or has another rank.
    """
    names = {slot.name.removesuffix(".lora_a") for slot in flat.layout.slots if slot.name.endswith(".lora_a")}
    beyond = sorted(adapter.weights.keys() - names)
    if beyond:
        raise Invalid(f"the adapter adds to {beyond[0]}, which is not among the targets", field="method.targets")
    for name, low in adapter.weights.items():
        if low.rank != method.rank:
            raise Invalid(f"the adapter has the rank {low.rank} for {name}, not {method.rank}", field="method.rank")
    for name, low in adapter.weights.items():
        flat.value(f"{name}.lora_a").copy_(torch.from_numpy(low.a))
        flat.value(f"{name}.lora_b").copy_(torch.from_numpy(low.b) * (method.rank / method.alpha))


def _given(model: ModelConfig, field: str) -> int:
    value: int | None = getattr(model, field)
    if value is None:
        raise Invalid(f"a new model needs {field}", field=f"model.{field}")
    return value


def _full(
    source: Checkpoint | DecoderConfig, config: DecoderConfig, method: MethodConfig, flat: FlatParameters, seed: int
) -> Weights:
    if isinstance(source, DecoderConfig):
        _fill_new(flat, config, seed)
        return Weights(config, method, flat, {}, {}, None)
    for slot in flat.layout.slots:
        flat.value(slot.name).copy_(_values(source.weight(slot.name)))
    return Weights(config, method, flat, {}, {}, _rope_factors(source))


def _fill_new(flat: FlatParameters, config: DecoderConfig, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for slot in flat.layout.slots:
        part = slot.name.split(".")[-2]
        if part.endswith("norm"):
            flat.value(slot.name).fill_(1.0)
        elif len(slot.shape) > 1:
            adds = part in ("attn_output", "ffn_down")
            deviation = DEVIATION / math.sqrt(2 * config.layers) if adds else DEVIATION
            flat.value(slot.name).copy_(torch.empty(slot.shape).normal_(0.0, deviation, generator=generator))


def _frozen(source: Checkpoint, method: MethodConfig, flat: FlatParameters, dtype: torch.dtype) -> Weights:
    config, device = source.config, flat.values.device
    matrices: dict[tuple[str, ...], Matrix] = {}
    for layer in range(config.layers):
        for stack in STACKS:
            names = tuple(f"blk.{layer}.{part}.weight" for part in stack)
            matrices[names] = _matrix([_read(source, name, method, dtype) for name in names], device, dtype)
    inside = {name for names in matrices for name in names}
    vectors = {
        # Vectors are small, and norms are computed in float32.
        name: _values(source.weight(name, dtype if len(shape) > 1 else torch.float32)).to(device)
        for name, shape in expected_shapes(config).items()
        if name not in inside
    }
    return Weights(config, method, flat, matrices, vectors, _rope_factors(source))


def _read(source: Checkpoint, name: str, method: MethodConfig, dtype: torch.dtype) -> Weight:
    weight = source.weight(name, dtype)
    if not method.four_bit:
        return Dense(_values(weight).to(dtype), source.bits(name))
    if isinstance(weight, Dense) and weight.values.shape[1] % GROUP == 0:
        return round_to_blocks(weight.values)
    return weight


def _matrix(weights: list[Weight], device: torch.device, dtype: torch.dtype) -> Matrix:
    blocks = [weight for weight in weights if isinstance(weight, Blocks)]
    if len(blocks) == len(weights):
        quants, scales, zeros = ([getattr(each, part) for each in blocks] for part in ("quants", "scale", "zero"))
        return FourBitMatrix(Blocks(torch.cat(quants), torch.cat(scales), torch.cat(zeros)), device)
    return DenseMatrix(torch.cat([_values(weight).to(device, dtype) for weight in weights]))


def _values(weight: Weight) -> torch.Tensor:
    return weight.values if isinstance(weight, Dense) else weight.dequantize()


def _rope_factors(source: Checkpoint) -> torch.Tensor | None:
    return source.weight("rope_freqs.weight").dequantize() if source.has("rope_freqs.weight") else None
