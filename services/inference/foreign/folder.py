"""A model folder that transformers computes: checked as our own are, and described before its weights are read.

Only classes that are in the installed library run, whatever the folder brings along or names; only safetensors are
read, and nothing is fetched.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from formats.checkpoint.architecture import LIMITS, DecoderConfig, Unsupported
from formats.checkpoint.safetensors_files import FLOATS, read_object, read_tensors
from microkernel.errors import Invalid
from services.inference.cache.keys import PAGE

__all__ = ["ForeignFolder", "open_folder", "page_estimate", "state_per_page"]

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")
UNLIMITED = 32_768  # tokens of context for models that name no limit, as those with a recurrent state
BY_LENGTH = frozenset({"dynamic", "longrope"})  # rotary scalings that depend on how long the text has become
TYPICAL = 1024  # tokens of a sequence over which a state of fixed size is spread, in the accounts


class ForeignFolder(msgspec.Struct, frozen=True):
    """A model in the Hugging Face layout. `refused` says why it is not computed here."""

    path: Path
    config: DecoderConfig
    tokenizer_source: Path
    hf_config: Any  # transformers' own
    attending: int  # layers whose state grows with the tokens
    recurrent: int  # layers whose state does not
    refused: str


def open_folder(path: Path, refused: Unsupported) -> ForeignFolder:
    """What `open_checkpoint` has refused, if transformers computes it.

    Raises `Unsupported` where it does not or is not installed, `Invalid` or `DataLoss` for damaged files.
    """
    if not path.is_dir():
        raise refused
    if find_spec("transformers") is None:
        raise Unsupported(
            refused.message, remedy="to have transformers compute it: pip install 'microkernel[transformers]'"
        ) from refused
    raw = read_object(path / "config.json")
    if raw.get("quantization_config"):
        raise Invalid(f"{path.name}: a quantised safetensors model is not read here", remedy="use its GGUF file")
    tensors = read_tensors(path)
    weights = [tensor for tensor in tensors.values() if tensor.dtype in FLOATS]
    kinds = [tensor.dtype for tensor in weights if len(tensor.shape) > 1]
    hf_config, attending, recurrent = _read_config(path, raw, refused)
    config = _describe(
        path.name,
        hf_config,
        dtype=max(sorted(set(kinds)), key=kinds.count, default=""),
        weights=sum(math.prod(tensor.shape) for tensor in weights),
    )
    return ForeignFolder(path, config, path, hf_config, attending, recurrent, refused.message)


def page_estimate(folder: ForeignFolder, itemsize: int) -> int:
    """About what a page stands for, in bytes; what it really is shows when the model runs."""
    text = folder.hf_config.get_text_config(decoder=True)
    config = folder.config
    latent = _count(text, ("kv_lora_rank",))
    values = config.kv_heads * config.head_dim if latent is None else latent
    state = _count(text, ("state_size", "mamba_d_state", "linear_key_head_dim"))
    fixed = 2 * folder.recurrent * config.hidden_size * (state or 1) * itemsize
    return state_per_page(2 * folder.attending * values * itemsize, fixed)


def state_per_page(growth: float, fixed: int) -> int:
    """A page's share of a state that has `growth` bytes a token and `fixed` bytes however long it is."""
    return max(1, math.ceil(growth * PAGE + fixed * PAGE / TYPICAL))


def _read_config(path: Path, raw: dict[str, Any], refused: Unsupported) -> tuple[Any, int, int]:
    """The library's configuration, and how many layers attend and how many are recurrent."""
    _check_layers(path.name, raw)
    os.environ["USE_HUB_KERNELS"] = "NO"  # read when it is imported: it could fetch code, where `kernels` is installed
    from transformers import AutoConfig, __version__  # noqa: PLC0415 - an extra, and seconds to import
    from transformers.cache_utils import (  # noqa: PLC0415
        CacheLayerMixin,
        DynamicCache,
        LinearAttentionCacheLayerMixin,
    )
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES  # noqa: PLC0415

    names = raw.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    unknown = Unsupported(
        f"{refused.message}, nor does transformers {__version__} know it as a language model", remedy=refused.remedy
    )
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        layers = DynamicCache(config=config).layers
    except Exception as error:  # whatever its checks of a stranger's numbers raise
        raise unknown from error
    known = CLASSES.get(config.model_type)
    sees = name.endswith("ForConditionalGeneration") and not getattr(config, "is_encoder_decoder", False)
    if known is None or (name != known and not sees):  # of a model that also sees, its language model
        raise unknown
    attending, recurrent = (
        sum(isinstance(layer, kind) for layer in layers) for kind in (CacheLayerMixin, LinearAttentionCacheLayerMixin)
    )
    return config, attending, recurrent


def _check_layers(where: str, raw: dict[str, Any]) -> None:
    """Refuse numbers of layers by which the library would multiply lists before anybody looks at them."""
    for section in (raw, *(value for value in raw.values() if isinstance(value, dict))):
        for name in LAYERS:
            value = section.get(name)
            if isinstance(value, int) and value > LIMITS["layers"]:
                raise Invalid(f"{where}: {name} is {value}, which must be at most {LIMITS['layers']}", field=name)


def _describe(where: str, hf_config: Any, *, dtype: str, weights: int) -> DecoderConfig:
    """What the engine has to know. Sizes that a kind of model does not have are 1."""
    text = hf_config.get_text_config(decoder=True)
    heads = _count(text, ("num_attention_heads", "n_head", "num_heads")) or 1
    hidden = _count(text, ("hidden_size", "n_embd", "d_model")) or 1
    config = DecoderConfig(
        architecture=hf_config.model_type,
        layers=_count(text, LAYERS) or 1,
        hidden_size=hidden,
        heads=heads,
        kv_heads=_count(text, ("num_key_value_heads", "num_kv_heads", "n_head_kv")) or heads,
        head_dim=_count(text, ("head_dim", "attention_head_dim")) or max(1, hidden // heads),
        ffn_size=_count(text, ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")) or 4 * hidden,
        vocab_size=_count(text, ("vocab_size",)) or 0,
        context_length=_context_length(text),
        quantization=dtype,
        counted=weights,
    )
    for field, limit in LIMITS.items():
        value = getattr(config, field)
        if not 0 < value <= limit:
            raise Invalid(f"{where}: {field} is {value}, which must be from 1 to {limit}", field=field)
    return config


def _context_length(text: Any) -> int:
    """The longest text. Where rotations change with the length of a text, it ends before they first do.

    What is cached was rotated for the shorter text, so going on would be another computation than reading it all anew.
    """
    names = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
    longest = _count(text, names) or UNLIMITED
    rope = getattr(text, "rope_parameters", None) or {}
    for section in (rope, *(section for section in rope.values() if isinstance(section, dict))):
        if section.get("rope_type") in BY_LENGTH:
            name = "original_max_position_embeddings"
            original = section.get(name, getattr(text, name, None))
            longest = min(longest, original) if isinstance(original, int) else longest
    return longest


def _count(config: Any, names: Iterable[str]) -> int | None:
    """The first of these numbers that a configuration has; of a list with one a layer, the largest."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, list | tuple):
            value = max((one for one in value if isinstance(one, int)), default=None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None
