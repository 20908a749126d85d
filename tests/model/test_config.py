"""Configurations: a table of what cannot work, and what follows from what was given."""

import dataclasses
from functools import partial

import pytest
from configurations import DENSE, GROUPS, MLA, MOE, YARN

from minids.model.config import ALIASES, PRESETS, ModelConfig, YarnScaling

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
    (dense, "positive", dict(rms_norm_eps=0, initializer_range=-0.02, embedding_initializer_range=0)),
    (dense, "positive", dict(rms_norm_eps=float("nan"), embedding_initializer_range="1")),
    (dense, "above 1", dict(rope_theta="10000")),
    (with_yarn, "above 1", dict(rope_theta=1.0)),
    (tied, "does not share", dict(embedding_initializer_range=1.0)),
    (dense, "true or false", dict(tie_word_embeddings=1)),
    (dense, "below vocab_size=100", dict(eos_token_id=100)),
    (dense, "YarnScaling", dict(rope_scaling=YARN)),
    (mla, "at least 1", dict(kv_lora_rank=0, q_lora_rank=0, qk_nope_head_dim=None, v_head_dim=0)),
    (mla, "even", dict(qk_rope_head_dim=7)),
    (moe, "at least 1", dict(n_routed_experts=0, num_experts_per_tok=None, moe_intermediate_size=None)),
    (moe, "at least 1", dict(moe_layer_freq=0, n_shared_experts=0)),
    (moe, "at most 8", dict(num_experts_per_tok=9)),
    (moe, "at most num_hidden_layers=4", dict(first_k_dense_replace=5)),
    (moe, "at least 0", dict(first_k_dense_replace=-1)),
    (moe, "true or false", dict(norm_topk_prob=None)),
    (moe, "sigmoid or softmax", dict(scoring_func="tanh")),
    (moe, "greedy, group_limited_greedy or noaux_tc", dict(topk_method="random")),
    (moe, "positive", dict(routed_scaling_factor=0)),
    (groups, "multiple of n_group=4", dict(n_routed_experts=10)),
    (groups, "at most n_group=4", dict(topk_group=5)),
    (groups, "at most 4", dict(num_experts_per_tok=5)),
    (groups, "at most half of n_routed_experts=8", dict(n_group=8)),
    (yarn, "at least 1", dict(factor=0.5, original_max_position_embeddings=0)),
    (yarn, "number", dict(factor="40")),
    (yarn, "positive", dict(beta_fast=0, beta_slow=-1)),
    (yarn, "at least beta_slow=1", dict(beta_fast=0.5)),
    (yarn, "at least 0", dict(mscale=-0.1, mscale_all_dim=None)),
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


def test_a_configuration_cannot_be_changed():
    for config, field in ((dense(), "hidden_size"), (yarn(), "factor")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field, 128)
