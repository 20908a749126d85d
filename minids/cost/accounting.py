"""What a model costs, from its configuration alone: parameters, cache bytes, FLOPs.

Nothing here touches a tensor, so DeepSeek-V3's 671,026,419,200 parameters are counted in
microseconds. The counts equal those of the instantiated model; a test holds the two together.

**What "active" means.** The reports do not count alike: DeepSeekMoE's 2.8B needs the embedding and
the head, V2-Lite's 2.4B cannot include the embedding. Here `active` is the body (every weight that
one token multiplies) plus the output head, without the embedding, which is a table look-up. That
gives V3's 36.6B, printed as 37B. The other two conventions are there by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from minids.cost.published import REPORTS
from minids.model.config import ModelConfig

FP8_TILE = 128  # numbers that share a scale: 1 x 128 of an activation, 128 x 128 of a weight (V3 report §3.3.2)


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters of the main model by part, plus what the MTP modules add. All in numbers of weights.

    `total` and the three kinds of `active` leave MTP out, as the published 671B and 37B do.
    """

    embedding: int
    attention: int  # projections and the norms on the latents
    dense_ffn: int
    routed_experts: int
    shared_experts: int
    router: int  # gate weights and the balancing bias
    norms: int
    head: int  # 0 where it shares the embedding's weights
    mtp: int  # beyond what MTP shares with the main model
    active_routed_experts: int  # of `routed_experts`, those that one token uses
    head_matmul: int  # the head's multiplications, also where its weights are shared

    @property
    def total(self) -> int:
        return (
            self.embedding + self.attention + self.dense_ffn + self.routed_experts
            + self.shared_experts + self.router + self.norms + self.head
        )  # fmt: skip

    @property
    def active_body(self) -> int:
        return (
            self.attention + self.dense_ffn + self.active_routed_experts
            + self.shared_experts + self.router + self.norms
        )  # fmt: skip

    @property
    def active(self) -> int:
        """Body plus head: the convention of this book, and of V3's 37B."""
        return self.active_body + self.head_matmul

    @property
    def active_with_embedding(self) -> int:
        return self.active_body + self.head + self.embedding

    @property
    def breakdown(self) -> dict[str, int]:
        """The parts that sum to `total`."""
        parts = asdict(self)
        for name in ("mtp", "active_routed_experts", "head_matmul"):
            del parts[name]
        return parts


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Count every weight of the model that `config` describes, by closed formulas."""
    c = config
    layers = range(c.num_hidden_layers)
    moe_layers = sum(c.is_moe_layer(i) for i in layers)
    dense_layers = c.num_hidden_layers - moe_layers
    embedding = c.vocab_size * c.hidden_size
    expert = _swiglu(c, c.moe_intermediate_size) if c.uses_moe else 0
    return ParameterCount(
        embedding=embedding,
        attention=c.num_hidden_layers * attention_parameters(c),
        dense_ffn=dense_layers * _swiglu(c, c.intermediate_size),
        routed_experts=moe_layers * expert * (c.n_routed_experts or 0),
        shared_experts=moe_layers * expert * (c.n_shared_experts or 0),
        router=moe_layers * _router(c),
        norms=(2 * c.num_hidden_layers + 1) * c.hidden_size,
        head=0 if c.tie_word_embeddings else embedding,
        mtp=sum(_mtp_module(c, c.num_hidden_layers + k) for k in range(c.num_nextn_predict_layers)),
        active_routed_experts=moe_layers * expert * (c.num_experts_per_tok or 0),
        head_matmul=embedding,
    )


def attention_parameters(config: ModelConfig) -> int:
    """Weights of one attention layer, RMSNorms on the latents included (V3 report eq. 1-11)."""
    c = config
    h, heads = c.hidden_size, c.num_attention_heads
    if not c.uses_mla:
        return 2 * h * heads * c.head_dim + 2 * h * c.num_key_value_heads * c.head_dim
    if c.q_lora_rank is None:
        query = h * heads * c.qk_head_dim
    else:
        query = h * c.q_lora_rank + c.q_lora_rank + c.q_lora_rank * heads * c.qk_head_dim
    down = h * (c.kv_lora_rank + c.qk_rope_head_dim) + c.kv_lora_rank
    up = c.kv_lora_rank * heads * (c.qk_nope_head_dim + c.v_head_dim)
    return query + down + up + heads * c.v_head_dim * h


def _swiglu(c: ModelConfig, width: int) -> int:
    return 3 * c.hidden_size * width


def _router(c: ModelConfig) -> int:
    if not c.uses_moe:
        return 0
    return c.n_routed_experts * (c.hidden_size + (1 if c.uses_expert_bias else 0))


def _mtp_module(c: ModelConfig, layer_index: int) -> int:
    """One block, the 2d -> d projection, and three norms: enorm, hnorm, and the one before the head."""
    if c.is_moe_layer(layer_index):
        experts = c.n_routed_experts + (c.n_shared_experts or 0)
        ffn = _router(c) + experts * _swiglu(c, c.moe_intermediate_size)
    else:
        ffn = _swiglu(c, c.intermediate_size)
    block = attention_parameters(c) + ffn + 2 * c.hidden_size
    return block + 2 * c.hidden_size**2 + 3 * c.hidden_size


def released_numbers(config: ModelConfig) -> dict[str, int]:
    """Numbers in the checkpoint as V3 was released, by dtype: what takes up the disk (V3's README_WEIGHTS.md).

    Linear layers are in FP8, with an FP32 scale for each 128 x 128 block. Embedding, head, gates, norms and the MTP
    projection stay in BF16, the balancing bias in FP32. Each MTP module comes with its own copy of embedding and head.
    Raises ValueError for a model of another shape than V3's.
    """
    if not (config.uses_mla and config.q_lora_rank and config.uses_moe and config.uses_expert_bias):
        raise ValueError("Only a model with V3's parts (MLA with a query latent, experts, a bias) was released so.")
    c, modules = config, config.num_nextn_predict_layers
    matrices = list(_matrices(c))
    fp8 = sum(rows * columns * times for rows, columns, times in matrices)
    scales = sum(-(-rows // FP8_TILE) * -(-columns // FP8_TILE) * times for rows, columns, times in matrices)
    count = count_parameters(c)
    biases = sum(c.is_moe_layer(i) for i in range(c.num_hidden_layers + modules)) * c.n_routed_experts
    stored_again = modules * (count.embedding + count.head)
    return {
        "F8_E4M3": fp8,
        "BF16": count.total + count.mtp + stored_again - fp8 - biases,
        "F32": scales + biases,
    }


def released_bytes(config: ModelConfig) -> int:
    """Bytes of the same checkpoint."""
    width = {"F8_E4M3": 1, "BF16": 2, "F32": 4}
    return sum(width[dtype] * numbers for dtype, numbers in released_numbers(config).items())


def _matrices(c: ModelConfig) -> Iterator[tuple[int, int, int]]:
    """Yield rows, columns and how often, for every matrix of an MLA model's blocks except the gates."""
    h, heads, layers = c.hidden_size, c.num_attention_heads, c.num_hidden_layers + c.num_nextn_predict_layers
    yield c.q_lora_rank, h, layers
    yield heads * c.qk_head_dim, c.q_lora_rank, layers
    yield c.kv_lora_rank + c.qk_rope_head_dim, h, layers
    yield heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank, layers
    yield h, heads * c.v_head_dim, layers
    moe_layers = sum(c.is_moe_layer(i) for i in range(layers))
    shared = (c.n_shared_experts or 0) * c.moe_intermediate_size
    for width, times in (
        (c.intermediate_size, layers - moe_layers),
        (c.moe_intermediate_size, moe_layers * c.n_routed_experts),
        (shared, moe_layers),
    ):
        yield width, h, 2 * times
        yield h, width, times


def kv_cache_elements(config: ModelConfig) -> int:
    """Numbers cached per token over all layers of the main model (V2 report, table 1).

    MLA keeps one latent and one rotated key per token and layer, (d_c + d_h^R) l, whatever the
    number of heads. The others keep a key and a value per key-value head.
    """
    c = config
    per_layer = c.kv_lora_rank + c.qk_rope_head_dim if c.uses_mla else 2 * c.num_key_value_heads * c.head_dim
    return c.num_hidden_layers * per_layer


def kv_cache_bytes(config: ModelConfig, bytes_per_element: float = 2) -> float:
    """Bytes cached per token; BF16 (2 bytes an element) unless told."""
    return kv_cache_elements(config) * bytes_per_element


def attention_kind(config: ModelConfig) -> str:
    """Return MHA, GQA, MQA or MLA."""
    if config.uses_mla:
        return "MLA"
    groups = config.num_key_value_heads
    return "MHA" if groups == config.num_attention_heads else "MQA" if groups == 1 else "GQA"


def kv_cache_bytes_by_kind(config: ModelConfig) -> dict[str, float]:
    """Bytes cached per token, in BF16, by a model's shape (layers, heads, width of a head) with each kind of attention.

    GQA has 8 groups, and MLA what V2 and V3 have: a latent of four head widths and a rotated key of half of one.
    Raises ValueError where 8 groups do not divide the heads.
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


def training_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """FLOPs to train the main model on one token: forward, and twice that for backward.

    Six per active weight, plus causal attention: a query meets (sequence_length / 2) keys on
    average, and each meeting costs a multiply-add per key and per value dimension and head. For V3
    at 4096 tokens this is the 250 GFLOP per token of "Insights into DeepSeek-V3" (2025). MTP is not counted.
    """
    c = config
    key_dim, value_dim = (c.qk_head_dim, c.v_head_dim) if c.uses_mla else (c.head_dim, c.head_dim)
    meetings = sequence_length / 2
    attention = 3 * c.num_hidden_layers * c.num_attention_heads * (key_dim + value_dim) * 2 * meetings
    return 6 * count_parameters(c).active + attention


def pre_training_hours_like_v3(config: ModelConfig) -> float:
    """H800-hours to pre-train a model on as many tokens as V3, at as many FLOPs per GPU and hour as V3 reached."""
    v3, length = ModelConfig.preset("deepseek-v3"), 4096
    share = training_flops_per_token(config, length) / training_flops_per_token(v3, length)
    return REPORTS["deepseek-v3"].pre_training_hours * share


def decoding_flops_per_token(config: ModelConfig, context: int) -> float:
    """FLOPs to decode one token over `context` cached ones: two per active weight, and attention.

    With MLA in its absorbed form every head meets each cached latent twice: once, with the rotated key, for
    the score, and once as a value. MTP is not counted.
    """
    c = config
    meeting = 2 * c.kv_lora_rank + c.qk_rope_head_dim if c.uses_mla else 2 * c.head_dim
    return 2 * (count_parameters(c).active + c.num_hidden_layers * c.num_attention_heads * context * meeting)


def mla_multiplications(config: ModelConfig, context: int, new_tokens: int = 1) -> dict[str, int]:
    """Multiplications with which one MLA layer attends from new tokens over a context, in each of three ways.

    "full cache": keys and values of all heads were kept; only the new tokens are expanded. "expanded": latents were
    kept, and each is expanded at every step. "absorbed": W^UK joins the queries and W^UV the outputs, and none is
    (V2 report, appendix C). `context` includes the new tokens. Every query meets every key, as in decoding one token;
    the causal triangle among many new ones is not taken off. The other projections are the same in all three.
    Raises ValueError for a model without latents.
    """
    _require_latents(config)
    c = config
    expand = c.num_attention_heads * c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim)  # also: to absorb a query
    meetings = new_tokens * context * c.num_attention_heads
    meet_expanded = meetings * (c.qk_head_dim + c.v_head_dim)
    meet_latent = meetings * (2 * c.kv_lora_rank + c.qk_rope_head_dim)
    return {
        "full cache": new_tokens * expand + meet_expanded,
        "expanded": context * expand + meet_expanded,
        "absorbed": new_tokens * expand + meet_latent,
    }


def mla_cached_numbers(config: ModelConfig) -> dict[str, int]:
    """Numbers that each of the three ways keeps of a token in one layer; ValueError as above.

    A full cache is that of expanded keys, k_rope copied for every head: larger than MHA's with heads of equal width.
    """
    _require_latents(config)
    c = config
    latent = c.kv_lora_rank + c.qk_rope_head_dim
    full = c.num_attention_heads * (c.qk_head_dim + c.v_head_dim)
    return {"full cache": full, "expanded": latent, "absorbed": latent}


def expansion_pays_from(config: ModelConfig, context: float = math.inf) -> float:
    """Return from how many new tokens at once on expanding the latents takes fewer multiplications than absorbing.

    A token costs H L (N + V) to expand, once for all queries, and so does a query to absorb. Each query that meets a
    latent instead of a key and a value costs H (2 L - N - V) more. In an endless context that makes
    T* = L (N + V) / (2 L - N - V), whatever the number of heads: 171 for V2 and V3; over S tokens 1 / (1 / S + 1 / T*).
    ValueError as above.
    """
    _require_latents(config)
    expanded = config.qk_nope_head_dim + config.v_head_dim
    more = 2 * config.kv_lora_rank - expanded
    inverse = 1 / context + max(more, 0) / (config.kv_lora_rank * expanded)
    return 1 / inverse if inverse else math.inf


def absorption_pays_from(config: ModelConfig, new_tokens: int) -> float | None:
    """Return the context S beyond which absorbing takes fewer multiplications: T / (1 - T / T*); None if there is none.

    T is the number of new tokens, which the context includes; T* that of `expansion_pays_from`. ValueError as above.
    """
    share = new_tokens / expansion_pays_from(config)
    return new_tokens / (1 - share) if share < 1 else None


def _require_latents(config: ModelConfig) -> None:
    if not config.uses_mla:
        raise ValueError("There is nothing to expand or absorb: this model has no latents (kv_lora_rank is None).")
