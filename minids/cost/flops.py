"""Floating-point operations (FLOPs) per token, in training and in decoding.

In the forward pass each active weight takes one multiplication and one addition per token, 2 FLOPs; attention adds
those of each query with each key and value. The backward pass computes two matrix products for each one of the forward
pass, 4 FLOPs per weight, so training takes 6. Softmax, rotations and the choice of experts are not counted: they take
time, but few operations. MTP is not counted either.
"""

from __future__ import annotations

from minids.cost.parameters import count_parameters
from minids.cost.published import REPORTS
from minids.model.config import ModelConfig


def training_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """FLOPs to train the main model on one token: forward, and twice that for backward.

    Six per active weight, plus causal attention: a query attends to sequence_length / 2 keys on average, and each pair
    takes one multiplication and one addition per key and value dimension and head. For V3 at 4096 tokens this gives the
    250 GFLOP per token of "Insights into DeepSeek-V3" (2025).
    """
    c = config
    key_dim, value_dim = (c.qk_head_dim, c.v_head_dim) if c.uses_mla else (c.head_dim, c.head_dim)
    keys = sequence_length / 2
    attention = 3 * c.num_hidden_layers * c.num_attention_heads * (key_dim + value_dim) * 2 * keys
    return 6 * count_parameters(c).active + attention


def decoding_flops_per_token(config: ModelConfig, context: int) -> float:
    """FLOPs to decode one token with `context` cached tokens: two per active weight, plus attention.

    In MLA's absorbed form every head multiplies each cached latent twice: with the rotated key for the score, and as
    the value.
    """
    c = config
    score_and_value = 2 * c.kv_lora_rank + c.qk_rope_head_dim if c.uses_mla else 2 * c.head_dim
    return 2 * (count_parameters(c).active + c.num_hidden_layers * c.num_attention_heads * context * score_and_value)


def pre_training_hours_like_v3(config: ModelConfig) -> float:
    """H800-hours to pre-train a model on as many tokens as V3, at the FLOPs per GPU-hour that V3's training reached."""
    v3, length = ModelConfig.preset("deepseek-v3"), 4096
    share = training_flops_per_token(config, length) / training_flops_per_token(v3, length)
    return REPORTS["deepseek-v3"].pre_training_hours * share
