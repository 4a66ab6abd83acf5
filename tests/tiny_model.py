"""A tiny random Llama in the Hugging Face layout, for journeys that need a model and no sense."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_tiny_model(folder: Path, *, context: int = 512, seed: int = 0, never_stops: bool = True) -> Path:
    """Write a model of 64 hidden units and 2 layers into `folder`; returns the folder.

    With `never_stops` no control token is ever chosen, so that an answer is as long as it was asked to be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    size = len(vocabulary)
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "chat_template": CHATML, "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    hidden, layers, heads, kv_heads, ffn = 64, 2, 4, 2, 128
    vocab = size + len(SPECIAL)
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "hidden_size": hidden,
                "intermediate_size": ffn,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": kv_heads,
                "head_dim": hidden // heads,
                "vocab_size": vocab,
                "max_position_embeddings": context,
                "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0,
                "tie_word_embeddings": False,
                "hidden_act": "silu",
                "eos_token_id": vocab - 1,
                "torch_dtype": "float32",
            }
        )
    )
    chance = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance) * 0.1

    tensors = {
        "model.embed_tokens.weight": weight(vocab, hidden),
        "lm_head.weight": weight(vocab, hidden),
        "model.norm.weight": torch.ones(hidden),
    }
    if never_stops:
        tensors["lm_head.weight"][size:] = 0.0
        tensors["lm_head.weight"][:size] *= 10
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        rows = hidden // heads * kv_heads
        tensors |= {
            f"{prefix}.self_attn.q_proj.weight": weight(hidden, hidden),
            f"{prefix}.self_attn.k_proj.weight": weight(rows, hidden),
            f"{prefix}.self_attn.v_proj.weight": weight(rows, hidden),
            f"{prefix}.self_attn.o_proj.weight": weight(hidden, hidden),
            f"{prefix}.mlp.gate_proj.weight": weight(ffn, hidden),
            f"{prefix}.mlp.up_proj.weight": weight(ffn, hidden),
            f"{prefix}.mlp.down_proj.weight": weight(hidden, ffn),
            f"{prefix}.input_layernorm.weight": torch.ones(hidden),
            f"{prefix}.post_attention_layernorm.weight": torch.ones(hidden),
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
