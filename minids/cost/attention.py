"""Three ways in which a layer with MLA can attend over its cache, and which of them costs least.

The layer can keep the keys and values of all heads ("full cache"), or keep latents and expand them to keys and values
at every step ("expanded"), or keep latents and never expand them ("absorbed"): the up-projection of the keys, W^UK,
is applied to the queries instead, and that of the values, W^UV, to the outputs (V2 report, appendix C).
Expanding pays when many new tokens share the expanded context, absorbing when few new tokens read a long one.
"""

from __future__ import annotations

import math

from minids.model.config import ModelConfig


def mla_multiplications(config: ModelConfig, context: int, new_tokens: int = 1) -> dict[str, int]:
    """Multiplications with which one MLA layer attends from new tokens over a context, in each of the three ways.

    "full cache": only the new tokens are expanded. "expanded": the whole context is, at every step. "absorbed": no
    token is, but to absorb a query and its output takes as many multiplications as to expand a token.
    `context` includes the new tokens. Every query attends to every key, as in decoding one token: the causal mask among
    many new tokens is not subtracted. The other projections are the same in all three ways.
    Raises ValueError for a model without latents.
    """
    _require_latents(config)
    c = config
    expand = c.num_attention_heads * c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim)  # also: to absorb a query
    pairs = new_tokens * context * c.num_attention_heads
    attend_expanded = pairs * (c.qk_head_dim + c.v_head_dim)
    attend_latent = pairs * (2 * c.kv_lora_rank + c.qk_rope_head_dim)
    return {
        "full cache": new_tokens * expand + attend_expanded,
        "expanded": context * expand + attend_expanded,
        "absorbed": new_tokens * expand + attend_latent,
    }


def mla_cached_numbers(config: ModelConfig) -> dict[str, int]:
    """Numbers that each of the three ways caches per token in one layer.

    The full cache holds expanded keys, with a copy of k_rope for each head, so it is larger than that of MHA with
    heads of the same width. Raises ValueError for a model without latents.
    """
    _require_latents(config)
    c = config
    latent = c.kv_lora_rank + c.qk_rope_head_dim
    full = c.num_attention_heads * (c.qk_head_dim + c.v_head_dim)
    return {"full cache": full, "expanded": latent, "absorbed": latent}


def expansion_pays_from(config: ModelConfig, context: float = math.inf) -> float:
    """Return the number T* of new tokens at once above which expanding takes fewer multiplications than absorbing.

    With H heads, latents of width L, and M and A dimensions per key (without position) and value: to expand a token
    costs H L (M + A), once for all queries, and to absorb a query costs as much. Each query that attends to a latent
    instead of a key and a value costs H (2 L - M - A) more. In an endless context T* = L (M + A) / (2 L - M - A), for
    any number of heads: 171 for V2 and V3. Over a context of S tokens the number is 1 / (1 / S + 1 / T*).
    Raises ValueError for a model without latents.
    """
    _require_latents(config)
    expanded = config.qk_nope_head_dim + config.v_head_dim
    more = 2 * config.kv_lora_rank - expanded
    inverse = 1 / context + max(more, 0) / (config.kv_lora_rank * expanded)
    return 1 / inverse if inverse else math.inf


def absorption_pays_from(config: ModelConfig, new_tokens: int) -> float | None:
    """Return the context S above which absorbing takes fewer multiplications, T / (1 - T / T*); None if there is none.

    T is the number of new tokens, which the context includes, and T* that of `expansion_pays_from`.
    Raises ValueError for a model without latents.
    """
    share = new_tokens / expansion_pays_from(config)
    return new_tokens / (1 - share) if share < 1 else None


def _require_latents(config: ModelConfig) -> None:
    if not config.uses_mla:
        raise ValueError("There is nothing to expand or absorb: this model has no latents (kv_lora_rank is None).")
