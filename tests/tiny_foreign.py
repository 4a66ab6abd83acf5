"""Tiny random models that are not computed here, written by transformers itself.

A test that imports this is skipped where transformers is not installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install '.[transformers]'"
)

VOCABULARY = 128
_COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GROUPED: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    **_COMMON,
}
_UNGROUPED = {name: value for name, value in _GROUPED.items() if name != "head_dim"}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, **_COMMON},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, **_COMMON},
    "gemma2": {**_GROUPED, "sliding_window": 8},
    "gemma3_text": {
        **_GROUPED,
        "num_hidden_layers": 3,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **_COMMON},
    "qwen3_moe": {**_GROUPED, **_EXPERTS},
    "llama4_text": {
        **_GROUPED,
        "num_hidden_layers": 4,
        "intermediate_size_mlp": 64,
        "num_local_experts": 2,
        "attention_chunk_size": 8,
    },
    "mamba": {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, **_COMMON},
    "mamba2": {
        "hidden_size": 32,
        "state_size": 8,
        "num_hidden_layers": 2,
        "num_heads": 4,
        "head_dim": 16,
        "n_groups": 1,
        **_COMMON,
    },
    "lfm2": {
        **_UNGROUPED,
        "layer_types": ["conv", "full_attention"],
    },
    "qwen3_next": {
        **_GROUPED,
        **_EXPERTS,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "jamba": {
        **_UNGROUPED,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "mamba_d_state": 8,
    },
}
_MAMBA2: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
HYBRIDS: dict[str, dict[str, Any]] = {  # more of those with a recurrent state
    "bamba": {**_UNGROUPED, **_MAMBA2, "attn_layer_indices": [1]},
    "falcon_h1": {**_UNGROUPED, **_MAMBA2, "mamba_d_ssm": 64},
    "granitemoehybrid": {
        **_UNGROUPED,
        **_MAMBA2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
        "layer_types": ["mamba", "attention"],
    },
    "lfm2_moe": {**_UNGROUPED, **_EXPERTS, "layer_types": ["conv", "full_attention"]},
    "nemotron_h": {
        **_UNGROUPED,
        "hybrid_override_pattern": "M*",
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
    },
    "olmo_hybrid": {
        **_UNGROUPED,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "qwen3_5_text": FAMILIES["qwen3_next"],
}
LONGROPE: dict[str, Any] = {  # a llama whose rotations change where a text gets longer than 32 tokens
    **_GROUPED,
    "max_position_embeddings": 256,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 4.0, 8.0],
    },
}


def make(family: str, *, seed: int = 0, **more: Any) -> Any:
    """Such a model, with weights so large that what came before decides what comes next."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(
            family, **{**FAMILIES.get(family, {}), **HYBRIDS.get(family, {}), **more}
        )
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(6.0)
    return model


def write(folder: Path, family: str, *, seed: int = 0, **more: Any) -> Path:
    """Write such a model into `folder`."""
    make(family, seed=seed, **more).save_pretrained(folder)
    return folder


def likeliest(folder: Path, prompt: list[int], count: int) -> list[int]:
    """What transformers generates after `prompt`, greedily and in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.tensor([prompt])
    written = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=count,
        min_new_tokens=count,
        eos_token_id=None,
        pad_token_id=0,
    )
    return [int(token) for token in written[0, len(prompt) :]]
