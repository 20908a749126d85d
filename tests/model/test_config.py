"""Configurations: a table of what cannot work, and what follows from what was given."""

import dataclasses
import re

import pytest

from minids.model.config import ALIASES, PRESETS, ModelConfig, YarnScaling

DENSE = dict(vocab_size=100, hidden_size=64, num_hidden_layers=4, intermediate_size=128, num_attention_heads=4)
MLA = dict(DENSE, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16)
MOE = dict(DENSE, n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=32)
GROUPS = dict(MOE, n_group=4, topk_group=2)
YARN = dict(factor=40, original_max_position_embeddings=4096)


def test_r1_is_the_same_architecture_as_v3():
    assert ModelConfig.preset("deepseek-r1") == ModelConfig.preset("deepseek-v3")


def test_an_unknown_preset_is_answered_with_the_names():
    with pytest.raises(ValueError, match="gpt-5") as error:
        ModelConfig.preset("gpt-5")
    assert all(name in str(error.value) for name in [*PRESETS, *ALIASES])
    assert ModelConfig.preset_names() == [*PRESETS, *ALIASES]


IMPOSSIBLE = [
    (DENSE, "vocab_size", 0, "at least 1"),
    (DENSE, "vocab_size", True, "whole number"),
    (DENSE, "hidden_size", 64.0, "whole number"),
    (DENSE, "hidden_size", 66, "multiple of num_attention_heads=4"),
    (DENSE, "num_hidden_layers", -1, "at least 1"),
    (DENSE, "intermediate_size", None, "at least 1"),
    (DENSE, "num_attention_heads", 0, "at least 1"),
    (DENSE, "num_key_value_heads", 3, "divisor of num_attention_heads=4"),
    (DENSE, "num_key_value_heads", 8, "divisor of num_attention_heads=4"),
    (DENSE, "head_dim", 7, "even"),
    (DENSE, "head_dim", 0, "at least 1"),
    (DENSE, "max_position_embeddings", 0, "at least 1"),
    (DENSE, "num_nextn_predict_layers", -1, "at least 0"),
    (DENSE, "rms_norm_eps", 0, "positive"),
    (DENSE, "rms_norm_eps", float("nan"), "positive"),
    (DENSE, "rope_theta", "10000", "above 1"),
    (DENSE, "initializer_range", -0.02, "positive"),
    (DENSE, "embedding_initializer_range", 0, "positive"),
    (DENSE, "embedding_initializer_range", "1", "positive"),
    (dict(DENSE, tie_word_embeddings=True), "embedding_initializer_range", 1.0, "does not share"),
    (DENSE, "tie_word_embeddings", 1, "true or false"),
    (DENSE, "bos_token_id", -1, "at least 0"),
    (DENSE, "eos_token_id", 100, "below vocab_size=100"),
    (DENSE, "rope_scaling", YARN, "YarnScaling"),
    (MLA, "kv_lora_rank", 0, "at least 1"),
    (MLA, "q_lora_rank", 0, "at least 1"),
    (MLA, "qk_nope_head_dim", None, "at least 1"),
    (MLA, "qk_rope_head_dim", 7, "even"),
    (MLA, "v_head_dim", 0, "at least 1"),
    (MOE, "n_routed_experts", 0, "at least 1"),
    (MOE, "num_experts_per_tok", None, "at least 1"),
    (MOE, "num_experts_per_tok", 9, "at most 8"),
    (MOE, "moe_intermediate_size", None, "at least 1"),
    (MOE, "moe_layer_freq", 0, "at least 1"),
    (MOE, "n_shared_experts", 0, "at least 1"),
    (MOE, "first_k_dense_replace", 5, "at most num_hidden_layers=4"),
    (MOE, "first_k_dense_replace", -1, "at least 0"),
    (MOE, "norm_topk_prob", None, "true or false"),
    (MOE, "scoring_func", "tanh", "sigmoid or softmax"),
    (MOE, "topk_method", "random", "greedy, group_limited_greedy or noaux_tc"),
    (MOE, "routed_scaling_factor", 0, "positive"),
    (GROUPS, "n_routed_experts", 10, "multiple of n_group=4"),
    (GROUPS, "topk_group", 5, "at most n_group=4"),
    (GROUPS, "num_experts_per_tok", 5, "at most 4"),
    (GROUPS, "n_group", 8, "at most half of n_routed_experts=8"),
]


@pytest.mark.parametrize(("base", "field", "value", "allowed"), IMPOSSIBLE)
def test_what_cannot_work_is_refused_in_one_sentence(base, field, value, allowed):
    ModelConfig(**base)
    with pytest.raises(ValueError, match="not possible") as error:
        ModelConfig(**(base | {field: value}))
    assert str(error.value).startswith(f"{field}={value!r} is not possible: it must be ")
    assert allowed in str(error.value)
    assert re.fullmatch(r"[^\n]+\.", str(error.value))


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("factor", 0.5, "at least 1"),
        ("factor", "40", "number"),
        ("original_max_position_embeddings", 0, "at least 1"),
        ("beta_fast", 0, "positive"),
        ("beta_fast", 0.5, "at least beta_slow=1"),
        ("beta_slow", -1, "positive"),
        ("mscale", -0.1, "at least 0"),
        ("mscale_all_dim", None, "at least 0"),
    ],
)
def test_yarn_that_cannot_work_is_refused_in_one_sentence(field, value, allowed):
    with pytest.raises(ValueError, match=f"^{field}={re.escape(repr(value))} is not possible: it must be .*{allowed}"):
        YarnScaling(**(YARN | {field: value}))


def test_yarn_needs_a_base_above_1():
    with pytest.raises(ValueError, match=r"rope_theta=1\.0"):
        ModelConfig(**DENSE, rope_theta=1.0, rope_scaling=YarnScaling(**YARN))


def test_greedy_gates_do_not_look_at_groups():
    assert ModelConfig(**(GROUPS | {"topk_method": "greedy", "num_experts_per_tok": 8})).num_experts_per_tok == 8


def test_groups_of_one_expert_are_possible_where_only_the_best_counts():
    assert ModelConfig(**(GROUPS | {"topk_method": "group_limited_greedy", "n_group": 8})).n_group == 8


def test_head_dim_and_kv_heads_follow_from_the_heads():
    config = ModelConfig(**DENSE)
    assert (config.head_dim, config.num_key_value_heads, config.rope_dim) == (16, 4, 16)
    assert ModelConfig(**DENSE, head_dim=24).rope_dim == 24


def test_expert_layers_begin_after_the_dense_ones_and_recur():
    config = ModelConfig(**(MOE | {"num_hidden_layers": 7}), first_k_dense_replace=2, moe_layer_freq=3)
    assert [i for i in range(7) if config.is_moe_layer(i)] == [3, 6]
    assert not any(ModelConfig(**DENSE).is_moe_layer(i) for i in range(4))


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig.preset("tiny").hidden_size = 128
    with pytest.raises(dataclasses.FrozenInstanceError):
        YarnScaling(**YARN).factor = 2
