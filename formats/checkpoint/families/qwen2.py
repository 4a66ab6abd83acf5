"""Qwen2 and Qwen2.5: biases for queries, keys and values, https://arxiv.org/abs/2407.10671."""

from formats.checkpoint.family import Family

__all__ = ["FAMILY"]

FAMILY = Family(name="qwen2", hf_class="Qwen2ForCausalLM", qkv_bias=True, tied=True)
