"""Mistral: a Llama that may have a sliding window in all layers, https://arxiv.org/abs/2310.06825."""

from formats.checkpoint.family import Family

__all__ = ["FAMILY"]

FAMILY = Family(name="mistral", hf_class="MistralForCausalLM", in_gguf=False, window="given")
