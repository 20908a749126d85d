"""Bytes of training in BF16 mixed precision and in V3's FP8 recipe (V3 report §3.3).

For each weight that is trained

                          BF16     FP8
    master weights        FP32     FP32     4 bytes, which the optimizer updates
    copy to multiply      BF16     E4M3     2 or 1: of the matrices of the blocks. The copy of all others is in BF16
    gradient              FP32     FP32     4, summed over the micro-batches
    two moments           FP32     BF16     8 or 4

For each token and layer, what the backward pass of the linear layers reads: the input of every matrix. In the recipe it
is in E4M3, with two exceptions. The input of the layer after attention is in E5M6, 12 bits. In a mixture of experts the
two inputs of SwiGLU are in E4M3, too, and its output, which down_proj reads, is computed again from them. In dense
layers the inputs of SwiGLU are not linear layers' inputs and stay in BF16.

Several matrices that read the same tensor keep it once. The gates, norms and the attention operator itself are not
counted: they are the same in both.

Between GPUs, the rows on their way to the experts (*dispatch*), and in the backward pass the gradients on the same way,
are in E4M3. The way back (*combine*) is in BF16 in both.

Every tile and every block has a scale of 4 bytes, also where it is a power of two. The biases of the gates are not
trained by gradients and not counted, except in files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from minids.cost.parameters import FP8_TILE, count_parameters, released_bytes, released_numbers
from minids.model.config import ModelConfig
from minids.validation import require

BF16, FP32, SCALE = 2, 4, 4  # bytes
E4M3_BITS, E5M6_BITS = 8, 12


@dataclass(frozen=True)
class Bytes:
    """The size of the same thing in both."""

    bf16: float
    fp8: float


def total(parts: Iterable[Bytes]) -> Bytes:
    """Return the sum of some parts."""
    parts = list(parts)
    return Bytes(sum(part.bf16 for part in parts), sum(part.fp8 for part in parts))


def _row_bytes(width: int, bits: int = E4M3_BITS, tile: int = FP8_TILE) -> float:
    """Return the bytes of a row of numbers of some bits, and of a scale for each tile of it."""
    return width * bits / 8 + SCALE * -(-width // tile)


def state_bytes(config: ModelConfig) -> dict[str, Bytes]:
    """Return what a model in training holds for its weights, MTP modules included.

    Raises ValueError for a model that lacks one of V3's components.
    """
    trained, matrices, scales = _trained(config)
    return {
        "master weights": Bytes(FP32 * trained, FP32 * trained),
        "copy of the matrices": Bytes(BF16 * matrices, matrices + SCALE * scales),
        "copy of the others": Bytes(BF16 * (trained - matrices), BF16 * (trained - matrices)),
        "gradients": Bytes(FP32 * trained, FP32 * trained),
        "moments": Bytes(2 * FP32 * trained, 2 * BF16 * trained),
    }


def trained_weights(config: ModelConfig) -> int:
    """Return the weights with a gradient, MTP modules included. Raises ValueError as `state_bytes` does."""
    return _trained(config)[0]


def _trained(config: ModelConfig) -> tuple[int, int, int]:
    """Return the weights with a gradient, those of them that are in FP8, and the scales of these."""
    files, count = released_numbers(config), count_parameters(config)
    stored_again = config.num_nextn_predict_layers * (count.embedding + count.head)
    trained = files["F8_E4M3"] + files["BF16"] - stored_again
    biases = count.total + count.mtp - trained
    return trained, files["F8_E4M3"], files["F32"] - biases


def activation_bytes(config: ModelConfig, layer_index: int, tile: int = FP8_TILE) -> dict[str, Bytes]:
    """Return what the backward pass of a layer's matrices reads, for one token, by the matrices that read it."""
    c, h = config, config.hidden_size

    def kept(width: int, times: int = 1, bits: int = E4M3_BITS) -> Bytes:
        return Bytes(times * BF16 * width, times * _row_bytes(width, bits, tile))

    if not c.uses_mla:
        attention = {"q_proj, k_proj, v_proj": kept(h)}
    elif c.q_lora_rank is None:
        attention = {"q_proj, kv_a_proj": kept(h), "kv_b_proj": kept(c.kv_lora_rank)}
    else:
        attention = {"q_a_proj, kv_a_proj": kept(h), "q_b_proj": kept(c.q_lora_rank), "kv_b_proj": kept(c.kv_lora_rank)}
    after_attention = c.num_attention_heads * (c.v_head_dim if c.uses_mla else c.head_dim)
    attention["o_proj"] = kept(after_attention, bits=E5M6_BITS)
    if not c.is_moe_layer(layer_index):
        width = c.intermediate_size
        swiglu = Bytes(2 * BF16 * width, 2 * BF16 * width)
        return attention | {"gate_proj, up_proj": kept(h), "SwiGLU": swiglu, "down_proj": kept(width)}
    out, shared_width = attention, (c.n_shared_experts or 0) * c.moe_intermediate_size
    for kind, width, times in (("routed", c.moe_intermediate_size, c.num_experts_per_tok), ("shared", shared_width, 1)):
        if width:
            out[f"{kind} gate_proj, up_proj"] = kept(h, times)
            out[f"{kind} SwiGLU"] = kept(width, 2 * times)
            out[f"{kind} down_proj"] = Bytes(kept(width, times).bf16, 0)  # computed again
    return out


def communication_bytes(config: ModelConfig, tile: int = FP8_TILE) -> dict[str, Bytes]:
    """Return what one copy of a token takes to an expert and back, in the forward pass; the backward takes as much.

    A token has `most_copies` of them at most. Raises ValueError for a model without experts.
    """
    require("n_routed_experts", config.n_routed_experts, config.uses_moe, "a number")
    h = config.hidden_size
    return {"dispatch": Bytes(BF16 * h, _row_bytes(h, tile=tile)), "combine": Bytes(BF16 * h, BF16 * h)}


def most_copies(config: ModelConfig) -> dict[str, int]:
    """Return how many copies of a token a layer sends at most: one to each node, there one to each expert's GPU.

    A node is a group of experts, as in V3 (§2.1.2, §3.2.2).
    """
    chosen = config.num_experts_per_tok
    limited = config.topk_method != "greedy"
    return {"between nodes": min(config.topk_group if limited else chosen, chosen), "within nodes": chosen}


def file_bytes(config: ModelConfig) -> Bytes:
    """Return the size of the released files, in BF16 and as V3's are. Raises ValueError as `released_bytes` does."""
    numbers, (_, _, scales) = released_numbers(config), _trained(config)
    biases = numbers["F32"] - scales
    return Bytes(BF16 * (numbers["F8_E4M3"] + numbers["BF16"]) + FP32 * biases, released_bytes(config))
