"""Configurations: a table of what cannot work, and what follows from what was given."""

import dataclasses
from functools import partial

import pytest
import torch
from configurations import DENSE, GROUPS, MLA, MOE, YARN

from minids.cost.parameters import count_parameters
from minids.model.config import (
    ALIASES,
    MOST_EXPERTS,
    MOST_LAYERS,
    MOST_MTP_MODULES,
    PRESETS,
    ModelConfig,
    YarnScaling,
)
from minids.model.deepseek import DeepSeek

dense, mla, moe, groups = (partial(ModelConfig, **base) for base in (DENSE, MLA, MOE, GROUPS))
tied, with_yarn = partial(dense, tie_word_embeddings=True), partial(dense, rope_scaling=YarnScaling(**YARN))
yarn = partial(YarnScaling, **YARN)

# What makes it, what its message says is allowed, and one field each that is not.
IMPOSSIBLE = [
    (dense, "at least 1", dict(vocab_size=0, num_hidden_layers=-1, intermediate_size=None, num_attention_heads=0)),
    (dense, "at least 1", dict(head_dim=0, max_position_embeddings=0)),
    (dense, "whole number", dict(vocab_size=True, hidden_size=64.0)),
    (dense, "multiple of num_attention_heads=4", dict(hidden_size=66)),
    (dense, "divisor of num_attention_heads=4", dict(num_key_value_heads=3)),
    (dense, "divisor of num_attention_heads=4", dict(num_key_value_heads=8)),
    (dense, "even", dict(head_dim=7)),
    (dense, "at least 0", dict(num_nextn_predict_layers=-1, bos_token_id=-1)),
    (dense, "from 1e-18 to 1e18", dict(rms_norm_eps=0, initializer_range=-0.02, embedding_initializer_range=0)),
    (dense, "from 1e-18 to 1e18", dict(rms_norm_eps=float("nan"), embedding_initializer_range="1")),
    (dense, "from 1e-18 to 1e18", dict(rms_norm_eps=1e-19, initializer_range=10**19)),
    (dense, "from 1 to 1e18", dict(rope_theta="10000")),
    (with_yarn, "above 1", dict(rope_theta=1.0)),
    (tied, "shares", dict(embedding_initializer_range=1.0)),
    (dense, "true or false", dict(tie_word_embeddings=1)),
    (dense, "at most 99", dict(eos_token_id=100, bos_token_id=2**70)),
    (dense, "whole number", dict(eos_token_id=[1], bos_token_id=(1,))),
    (dense, "whole number", dict(eos_token_id=())),
    (dense, "at most 1000", dict(num_hidden_layers=1001)),
    (dense, "at most 100", dict(num_nextn_predict_layers=101)),
    (dense, "at most 9223372036854775807", dict(hidden_size=2**63, max_position_embeddings=2**63)),
    (dense, "YarnScaling", dict(rope_scaling=YARN)),
    (mla, "at least 1", dict(kv_lora_rank=0, q_lora_rank=0, qk_nope_head_dim=None, v_head_dim=0)),
    (mla, "even", dict(qk_rope_head_dim=7)),
    (moe, "at least 1", dict(n_routed_experts=0, num_experts_per_tok=None, moe_intermediate_size=None)),
    (moe, "at least 1", dict(moe_layer_freq=0, n_shared_experts=0)),
    (moe, "at most 8", dict(num_experts_per_tok=9)),
    (moe, "at most 65536", dict(n_routed_experts=65_537)),
    (moe, "at least 0", dict(first_k_dense_replace=-1)),
    (moe, "true or false", dict(norm_topk_prob=None)),
    (moe, "sigmoid or softmax", dict(scoring_func="tanh")),
    (moe, "greedy, group_limited_greedy or noaux_tc", dict(topk_method="random")),
    (moe, "from 1e-18 to 1e18", dict(routed_scaling_factor=0)),
    (groups, "multiple of n_group=4", dict(n_routed_experts=10)),
    (groups, "at most n_group=4", dict(topk_group=5)),
    (groups, "at most 4", dict(num_experts_per_tok=5)),
    (groups, "at most half of n_routed_experts=8", dict(n_group=8)),
    (yarn, "1", dict(factor=0.5, original_max_position_embeddings=0)),
    (yarn, "number", dict(factor="40")),
    (yarn, "from 1e-18 to 1e18", dict(beta_fast=0, beta_slow=-1)),
    (yarn, "from 1e-18 to 1e18", dict(beta_fast=1e308, beta_slow=5e-324)),
    (yarn, "at least beta_slow=1", dict(beta_fast=0.5)),
    (yarn, "from 0 to 1e18", dict(mscale=-0.1, mscale_all_dim=None)),
]


@pytest.mark.parametrize(("make", "allowed", "fields"), IMPOSSIBLE)
def test_what_cannot_work_is_refused_in_one_sentence(make, allowed, fields):
    make()
    for field, value in fields.items():
        with pytest.raises(ValueError, match="not possible") as error:
            make(**{field: value})
        assert str(error.value).startswith(f"{field}={value!r} is not possible: it must be ")
        assert allowed in str(error.value)


def test_presets_go_by_their_names_and_r1_is_v3():
    assert ModelConfig.preset("deepseek-r1") == ModelConfig.preset("deepseek-v3")
    assert ModelConfig.preset_names() == [*PRESETS, *ALIASES]
    with pytest.raises(ValueError, match="gpt-5") as error:
        ModelConfig.preset("gpt-5")
    assert all(name in str(error.value) for name in ModelConfig.preset_names())


def test_greedy_gates_do_not_look_at_groups_and_groups_of_one_will_do_where_only_the_best_counts():
    assert groups(topk_method="greedy", num_experts_per_tok=8).num_experts_per_tok == 8
    assert groups(topk_method="group_limited_greedy", n_group=8).n_group == 8


def test_head_dim_and_kv_heads_follow_from_the_heads():
    assert (dense().head_dim, dense().num_key_value_heads, dense().rope_dim) == (16, 4, 16)
    assert dense(head_dim=24).rope_dim == 24


def test_expert_layers_begin_after_the_dense_ones_and_recur():
    config = moe(num_hidden_layers=7, first_k_dense_replace=2, moe_layer_freq=3)
    assert [i for i in range(7) if config.is_moe_layer(i)] == [3, 6]
    assert not any(dense().is_moe_layer(i) for i in range(4))


def test_expert_layers_that_would_begin_beyond_the_last_leave_a_dense_model():
    config = moe(first_k_dense_replace=5, num_nextn_predict_layers=2)
    assert [config.is_moe_layer(i) for i in range(6)] == [False] * 5 + [True]  # layer 6 is the second MTP module's
    assert config.moe_layer_names() == ["MTP"]


def test_one_token_or_several_end_a_text():
    assert dense(eos_token_id=7).end_of_text_ids == (7,)
    assert dense(eos_token_id=(7, 0)).end_of_text_ids == (7, 0)
    with pytest.raises(ValueError, match="eos_token_id=100 is not possible"):
        dense(eos_token_id=(7, 100))


def test_the_largest_configurations_are_counted_at_once():
    largest = dict(num_hidden_layers=MOST_LAYERS, num_nextn_predict_layers=MOST_MTP_MODULES)
    assert count_parameters(mla(**largest)).total > count_parameters(mla()).total
    assert count_parameters(moe(**largest, n_routed_experts=MOST_EXPERTS)).routed_experts == 1000 * 65_536 * 3 * 64 * 32


@pytest.mark.parametrize("number", [1, 10**18])
def test_the_largest_and_the_smallest_numbers_can_be_computed_with(number):
    numbers = dict(rms_norm_eps=1e18 / number, routed_scaling_factor=number, rope_theta=max(number, 1 + 1e-15))
    stretch = yarn(factor=number, original_max_position_embeddings=2**63 - number, beta_fast=number, beta_slow=1e-18)
    logits_BTV = DeepSeek(moe(num_hidden_layers=1, rope_scaling=stretch, **numbers))(torch.tensor([[1, 2]]))
    assert logits_BTV.isfinite().all()


def test_a_configuration_cannot_be_changed():
    for config, field in ((dense(), "hidden_size"), (yarn(), "factor")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field, 128)
