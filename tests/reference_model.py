"""An independent engine for a GGUF file: transformers, with weights that the `gguf` library dequantised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import torch

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
KINDS = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def reference_model(path: Path, *, round_weights: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Any:
    """The model in float32. `round_weights` is given each matrix, and what it returns is taken instead."""
    import transformers

    reader = gguf.GGUFReader(path)
    architecture = reader.get_field("general.architecture").contents()

    def field(name: str, default: Any = None) -> Any:
        found = reader.get_field(f"{architecture}.{name}")
        return default if found is None else found.contents()

    window = field("attention.sliding_window")
    kind_of_model = "Mistral" if architecture == "llama" and window else KINDS[architecture]
    heads, kv_heads = field("attention.head_count"), field("attention.head_count_kv")
    state = {}
    for tensor in reader.tensors:
        values = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        if round_weights is not None and values.dim() > 1:
            values = round_weights(values)
        part, _, kind = tensor.name.rpartition(".")
        if part.startswith("blk."):
            _, layer, part = part.split(".")
            if part in ("attn_q", "attn_k") and architecture == "llama":  # rows in rotary pairs
                count = heads if part == "attn_q" else kv_heads
                values = values.view(count, -1, 2, values.shape[1]).transpose(1, 2).reshape(values.shape)
            state[f"model.layers.{layer}.{NAMES[part]}.{kind}"] = values
        else:
            state[f"{TOP[part]}.{kind}"] = values
    tied = "lm_head.weight" not in state
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    config = getattr(transformers, f"{kind_of_model}Config")(
        vocab_size=state["lm_head.weight"].shape[0],
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=field("attention.key_length", field("embedding_length") // heads),
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        sliding_window=window,
        tie_word_embeddings=tied,
    )
    model = getattr(transformers, f"{kind_of_model}ForCausalLM")(config).float().eval()
    model.load_state_dict(state)
    return model


def logits_of(model: Any, tokens: list[int]) -> torch.Tensor:
    """Float32 logits [n, vocabulary] after each of `tokens`."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


def reference_logits(path: Path, tokens: list[int]) -> torch.Tensor:
    """Float32 logits [n, vocabulary] after each of `tokens`."""
    return logits_of(reference_model(path), tokens)
