"""Qwen3: each query and key head is normed, https://arxiv.org/abs/2505.09388."""

from formats.checkpoint.family import Family

__all__ = ["FAMILY"]

FAMILY = Family(name="qwen3", hf_class="Qwen3ForCausalLM", qk_norm=True)
