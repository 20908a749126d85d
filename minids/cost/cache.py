"""The size of the KV cache per token, in numbers and in bytes.

Prefill and decoding add one row per token to the KV cache of each layer. The four kinds of attention differ mainly in
what a row holds: a key and a value for each head (MHA), for each group of heads (GQA), for all heads together (MQA), or
one latent and one rotated key (MLA; V2 report, table 1). The formulas use the configuration only; the tests compare
them with the bytes of real caches.
"""

from __future__ import annotations

from dataclasses import replace

from minids.model.config import ModelConfig


def kv_cache_elements(config: ModelConfig) -> int:
    """Numbers cached per token over all layers of the main model (V2 report, table 1).

    MLA caches one latent and one rotated key per token and layer, d_latent + d_rope numbers for any number of heads.
    The other kinds cache a key and a value for each key-value head.
    """
    c = config
    per_layer = c.kv_lora_rank + c.qk_rope_head_dim if c.uses_mla else 2 * c.num_key_value_heads * c.head_dim
    return c.num_hidden_layers * per_layer


def kv_cache_bytes(config: ModelConfig, bytes_per_element: float = 2) -> float:
    """Bytes cached per token over all layers, by default in BF16 (2 bytes per number)."""
    return kv_cache_elements(config) * bytes_per_element


def attention_kind(config: ModelConfig) -> str:
    """Return the name of the kind of attention: MHA, GQA, MQA or MLA."""
    if config.uses_mla:
        return "MLA"
    groups = config.num_key_value_heads
    return "MHA" if groups == config.num_attention_heads else "MQA" if groups == 1 else "GQA"


def kv_cache_bytes_by_kind(config: ModelConfig) -> dict[str, float]:
    """Bytes cached per token in BF16, for a model with these layers, heads and head width and each kind of attention.

    GQA has 8 groups. MLA has the proportions of V2 and V3, a latent of four head widths and a rotated key of half a
    head width; a model with MLA keeps its own widths. Raises ValueError if 8 does not divide the number of heads.
    """
    c = config
    width = c.v_head_dim if c.uses_mla else c.head_dim
    plain = replace(c, kv_lora_rank=None, q_lora_rank=None, qk_nope_head_dim=None, qk_rope_head_dim=None,
                    v_head_dim=None, head_dim=width, rope_scaling=None)  # fmt: skip
    groups = {"MHA": c.num_attention_heads, "GQA": 8, "MQA": 1}
    sizes = {kind: kv_cache_bytes(replace(plain, num_key_value_heads=heads)) for kind, heads in groups.items()}
    latent = c if c.uses_mla else replace(
        c, num_key_value_heads=None, head_dim=None, kv_lora_rank=4 * width, qk_nope_head_dim=width,
        qk_rope_head_dim=width // 2, v_head_dim=width,
    )  # fmt: skip
    return sizes | {"MLA": kv_cache_bytes(latent)}
