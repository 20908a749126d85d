"""Small configurations of each family, as entries that this library and transformers know by the same names."""

import json
import random

import hf_oracle  # noqa: F401, it makes the family "deepseek" known to AutoConfig
from configurations import DENSE, MLA, MOE
from transformers import AutoConfig, PreTrainedConfig

from minids.model.config import ModelConfig, YarnScaling

# One small configuration of each family.
SOFTMAX = dict(scoring_func="softmax", topk_method="greedy", norm_topk_prob=False)
LLAMA = ModelConfig(**DENSE, head_dim=16)
DEEPSEEK = ModelConfig(**MOE, **SOFTMAX)
V2 = ModelConfig(**(MLA | MOE), **SOFTMAX, n_shared_experts=2)
V3 = ModelConfig(**(MLA | MOE), n_shared_experts=1)
FAMILY = {LLAMA: "llama", DEEPSEEK: "deepseek", V2: "deepseek_v2", V3: "deepseek_v3"}

# No 0: beside one transformers passes over the other, DeepSeek's own code does not, and we name no family.
MSCALES = [{}, *[dict(mscale=a, mscale_all_dim=b) for a, b in ((1.0, 1.0), (0.7, 0.7), (1.0, 0.5), (0.6, 1.4))]]


def on_disk(entries: dict) -> dict:
    return json.loads(json.dumps(entries))


def draw_body(rng: random.Random) -> dict:
    yarn = dict(
        factor=rng.choice([2.5, 4.0, 40.0]), original_max_position_embeddings=rng.choice([4, 8, 16]),
        beta_fast=rng.choice([4, 32]), beta_slow=rng.choice([0.1, 1, 4]), **rng.choice(MSCALES),
    )  # fmt: skip
    return dict(
        vocab_size=rng.randint(20, 60), hidden_size=rng.choice([24, 48]), num_hidden_layers=rng.randint(2, 3),
        intermediate_size=rng.randint(20, 40), rms_norm_eps=rng.choice([1e-6, 1e-2]),
        tie_word_embeddings=rng.random() < 0.5, rope_theta=rng.choice([100.0, 10000.0]),
        rope_scaling=rng.choice([None, yarn, yarn]), num_attention_heads=rng.choice([1, 2, 4, 6]),
    )  # fmt: skip


def draw_experts(rng: random.Random, layers: int) -> dict:
    return dict(
        n_routed_experts=rng.choice([4, 8]), num_experts_per_tok=rng.randint(1, 3),
        moe_intermediate_size=rng.randint(4, 16), n_shared_experts=rng.randint(1, 3),
        first_k_dense_replace=rng.randint(0, layers),
    )  # fmt: skip


def draw_groups(rng: random.Random) -> dict:
    groups, per_group = rng.choice([1, 2, 4]), rng.choice([2, 3])
    topk_group = rng.randint(1, groups)
    chosen = rng.randint(1, min(4, topk_group * per_group))
    return dict(n_routed_experts=groups * per_group, n_group=groups, topk_group=topk_group, num_experts_per_tok=chosen)


def draw_mla(rng: random.Random, heads: int) -> dict:
    return dict(
        num_key_value_heads=heads, kv_lora_rank=rng.randint(4, 20), q_lora_rank=rng.choice([None, 12]),
        qk_nope_head_dim=rng.randint(3, 12), qk_rope_head_dim=rng.choice([2, 4, 8]), v_head_dim=rng.randint(3, 12),
    )  # fmt: skip


def draw_llama(rng: random.Random) -> dict:
    body = draw_body(rng)
    divisors = [n for n in (1, 2, 3, 4, 6) if body["num_attention_heads"] % n == 0]
    return body | dict(num_key_value_heads=rng.choice(divisors), head_dim=rng.choice([None, 8, 10]))


def draw_deepseek(rng: random.Random) -> dict:
    """DeepSeekMoE-16B: Llama's attention without YaRN, V2's experts."""
    body = draw_llama(rng) | dict(head_dim=None, rope_scaling=None)
    experts = draw_experts(rng, body["num_hidden_layers"])
    return body | experts | dict(topk_method="greedy", moe_layer_freq=rng.randint(1, 2))


def draw_v2(rng: random.Random) -> dict:
    body = draw_body(rng)
    mla = draw_mla(rng, body["num_attention_heads"])
    # transformers views V2's pairs as complex numbers in place, which takes even widths before them.
    mla |= dict(kv_lora_rank=2 * mla["kv_lora_rank"], qk_nope_head_dim=2 * mla["qk_nope_head_dim"])
    method = rng.choice(["greedy", "group_limited_greedy"])
    groups = draw_groups(rng) if method == "group_limited_greedy" else {}
    gate = dict(topk_method=method, routed_scaling_factor=rng.choice([1.0, 2.5, 16.0]))
    return body | mla | draw_experts(rng, body["num_hidden_layers"]) | gate | groups


def draw_v3(rng: random.Random) -> dict:
    body = draw_body(rng)
    gate = dict(norm_topk_prob=rng.random() < 0.6, routed_scaling_factor=rng.choice([1.0, 2.5]))
    experts = draw_experts(rng, body["num_hidden_layers"])
    mla = draw_mla(rng, body["num_attention_heads"])
    return body | mla | experts | draw_groups(rng) | gate | dict(num_nextn_predict_layers=0)


def draw_v3_with_mtp(rng: random.Random) -> dict:
    return draw_v3(rng) | dict(num_nextn_predict_layers=rng.randint(1, 2))


FAMILIES = {
    "llama": draw_llama,
    "deepseek": draw_deepseek,
    "deepseek_v2": draw_v2,
    "deepseek_v3": draw_v3,
    "deepseek_v3+mtp": draw_v3_with_mtp,
}
WITHOUT_MTP = [family for family in FAMILIES if not family.endswith("+mtp")]
SOFTMAX = dict(scoring_func="softmax", norm_topk_prob=False)


def draw(family: str, seed: int) -> dict:
    return FAMILIES[family](random.Random(f"{family} {seed}"))


def draw_ours(family: str, seed: int) -> ModelConfig:
    """The configuration that belongs to a seed, as this library takes it."""
    model_type, entries = family.removesuffix("+mtp"), draw(family, seed)
    if entries["rope_scaling"] is not None:
        entries["rope_scaling"] = YarnScaling(**entries["rope_scaling"])
    config = ModelConfig(**entries, **(SOFTMAX if model_type in ("deepseek", "deepseek_v2") else {}))
    assert config.model_type == model_type
    return config


def draw_theirs(family: str, seed: int) -> PreTrainedConfig:
    """The same as transformers takes it today, none of our code between."""
    entries = draw(family, seed)
    scaling, theta = entries.pop("rope_scaling"), entries.pop("rope_theta")
    rope = {"rope_type": "default"} if scaling is None else {"rope_type": "yarn", **scaling}
    return AutoConfig.for_model(family.removesuffix("+mtp"), **entries, rope_parameters=rope | {"rope_theta": theta})
