"""Parameters of a model: by part, active per token, and in the released files.

The formulas use the configuration only, so DeepSeek-V3's 671,026,419,200 parameters are counted in microseconds. The
tests check that instantiated models have exactly as many.

**What "active" means.** The reports count in different ways: DeepSeekMoE's 2.8B includes the embedding and the head,
V2-Lite's 2.4B cannot include the embedding. Here `active` is the body (the weights of the blocks that a token is
multiplied by) plus the output head, without the embedding, which is a look-up. For V3 this is 36.6B, printed as 37B.
The other two conventions are properties of `ParameterCount`, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from minids.model.config import ModelConfig

FP8_TILE = 128  # side of a block with one scale: 1 x 128 in activations, 128 x 128 in weights (V3 report §3.3.2)


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters of the main model by part, and those that the MTP modules add.

    `total` and the three kinds of `active` exclude MTP, as the published 671B and 37B do.
    """

    embedding: int
    attention: int  # projections and the norms on the latents
    dense_ffn: int
    routed_experts: int
    shared_experts: int
    router: int  # gate weights and the balancing bias
    norms: int
    head: int  # 0 if it shares the embedding's weights
    mtp: int  # without the embedding and head that MTP shares with the main model
    active_routed_experts: int  # those of `routed_experts` that one token uses
    head_matmul: int  # weights that the head multiplies by, also if they are the embedding's

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
        """Body plus head: the convention of this book and of V3's 37B."""
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
    """Count the parameters of the model that `config` describes, by closed formulas."""
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
    """Parameters of one attention layer, including the norms of the latents (V3 report eq. 1-11)."""
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
    """Count the numbers of each dtype in the files of a model released as V3 was (V3's README_WEIGHTS.md).

    Linear layers are in FP8, with an FP32 scale for each 128 x 128 block. Embedding, head, gates, norms and the MTP
    projection are in BF16, and the balancing bias in FP32. Each MTP module has a copy of embedding and head. Raises
    ValueError for a model that lacks one of V3's components.
    """
    if not (config.uses_mla and config.q_lora_rank and config.uses_moe and config.uses_expert_bias):
        raise ValueError("this model is not like V3: it must have MLA, q_lora_rank, experts and an expert bias.")
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
    """Bytes of the checkpoint that `released_numbers` counts. Raises ValueError as it does."""
    width = {"F8_E4M3": 1, "BF16": 2, "F32": 4}
    return sum(width[dtype] * numbers for dtype, numbers in released_numbers(config).items())


def _matrices(c: ModelConfig) -> Iterator[tuple[int, int, int]]:
    """Yield the rows, columns and number of every matrix in an MLA model's blocks, except the gates."""
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
