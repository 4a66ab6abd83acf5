"""Phi-3 and Phi-3.5 mini, Phi-4: a Llama whose matrices with the same input are one, https://arxiv.org/abs/2404.14219.

Those with long contexts (longrope) and with partly rotated heads (Phi-4 mini) are not computed here.
"""

from formats.checkpoint.family import Family, Fused

__all__ = ["FAMILY"]

FAMILY = Family(
    name="phi3",
    hf_class="Phi3ForCausalLM",
    window="given",
    fused=(
        Fused(("attn_q", "attn_k", "attn_v"), hf="self_attn.qkv_proj", gguf="attn_qkv"),
        Fused(("ffn_gate", "ffn_up"), hf="mlp.gate_up_proj", gguf="ffn_up"),
    ),
)
