"""Three ways of computing MLA over a KV cache, and which of them needs the fewest multiplications.

The layer can cache the keys and values of all heads ("full cache"), or cache latents and expand them to keys and values
at every step ("expanded"), or cache latents and not expand them ("absorbed"): W^UK is applied to the queries instead,
and W^UV to the weighted sums of latents (V2 report, appendix C). Expanding takes fewer multiplications if many new
tokens share the expanded context, absorbing if few new tokens attend to a long context.
"""

from __future__ import annotations

import math

from minids.model.config import ModelConfig


def mla_multiplications(config: ModelConfig, context: int, new_tokens: int = 1) -> dict[str, int]:
    """Multiplications of one MLA layer for attention from new tokens over a context, in each of the three ways.

    "full cache" expands only the new tokens, "expanded" the whole context at every step, "absorbed" none; but applying
    W^UK to a query and W^UV to its output takes as many multiplications as expanding a token. `context` includes the
    new tokens. Every query counts with every key of the context, also with those that the causal mask hides if there
    are several new tokens. The other projections are the same in all three ways and not counted. Raises ValueError for
    a model without latents.
    """
    _require_latents(config)
    c = config
    expand = c.num_attention_heads * c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim)  # also to absorb a query
    pairs = new_tokens * context * c.num_attention_heads
    attend_expanded = pairs * (c.qk_head_dim + c.v_head_dim)
    attend_latent = pairs * (2 * c.kv_lora_rank + c.qk_rope_head_dim)
    return {
        "full cache": new_tokens * expand + attend_expanded,
        "expanded": context * expand + attend_expanded,
        "absorbed": new_tokens * expand + attend_latent,
    }


def mla_cached_numbers(config: ModelConfig) -> dict[str, int]:
    """Numbers cached per token and layer in each of the three ways.

    The full cache holds a copy of k_rope in the key of each head, so it is larger than that of MHA with d_nope and d_v
    numbers per key and value. Raises ValueError for a model without latents.
    """
    _require_latents(config)
    c = config
    latent = c.kv_lora_rank + c.qk_rope_head_dim
    full = c.num_attention_heads * (c.qk_head_dim + c.v_head_dim)
    return {"full cache": full, "expanded": latent, "absorbed": latent}


def expansion_pays_from(config: ModelConfig, context: float = math.inf) -> float:
    """Return the number of new tokens above which expanding takes fewer multiplications than absorbing.

    With H heads, expanding a token takes H · d_latent · (d_nope + d_v) multiplications, once for all queries; absorbing
    a query takes as many. Each pair of a query and a latent instead of a key and value takes
    H · (2 d_latent - d_nope - d_v) more. In the limit of a long context, the threshold is

        T* = d_latent (d_nope + d_v) / (2 d_latent - d_nope - d_v)

    for any number of heads, about 171 in V2 and V3. Over a context of S tokens it is 1 / (1 / S + 1 / T*). Raises
    ValueError for a model without latents.
    """
    _require_latents(config)
    expanded = config.qk_nope_head_dim + config.v_head_dim
    more = 2 * config.kv_lora_rank - expanded
    inverse = 1 / context + max(more, 0) / (config.kv_lora_rank * expanded)
    return 1 / inverse if inverse else math.inf


def absorption_pays_from(config: ModelConfig, new_tokens: int) -> float | None:
    """Return the context S above which absorbing takes fewer multiplications, T / (1 - T / T*); None if there is none.

    T is the number of new tokens, which the context includes, and T* the limit in `expansion_pays_from`. Raises
    ValueError for a model without latents.
    """
    share = new_tokens / expansion_pays_from(config)
    return new_tokens / (1 - share) if share < 1 else None


def _require_latents(config: ModelConfig) -> None:
    if not config.uses_mla:
        raise ValueError("this model has no latents to expand or absorb (kv_lora_rank=None): use a model with MLA.")
