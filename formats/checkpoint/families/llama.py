"""Llama, from 1 to 3.3, SmolLM and all that took its shape: https://arxiv.org/abs/2302.13971."""

from formats.checkpoint.family import Family

__all__ = ["FAMILY"]

FAMILY = Family(name="llama", hf_class="LlamaForCausalLM", gguf_halves=False)
