"""The whole model against transformers' own classes: expert choices, logits, and the gradient of every parameter."""

import random
from dataclasses import replace

import pytest
import torch
from configurations import random_model, random_tokens
from hf_oracle import closest_call, hf_config, hf_name, hf_state, hf_twin, record_gates
from torch.testing import assert_close
from transformers import LlamaForCausalLM
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe

from minids.config import ModelConfig, YarnScaling

YARN = YarnScaling(factor=4, original_max_position_embeddings=16, beta_fast=4, mscale=0.707, mscale_all_dim=0.707)


def draw_mla(rng: random.Random) -> ModelConfig:
    heads, groups, per_group = rng.choice([1, 2, 4]), rng.choice([1, 2, 4]), rng.choice([2, 4])
    topk_group = rng.randint(1, groups)
    return ModelConfig(
        vocab_size=rng.randint(20, 60),
        hidden_size=8 * rng.randint(2, 5),
        num_hidden_layers=rng.randint(2, 4),
        intermediate_size=rng.randint(20, 60),
        rms_norm_eps=rng.choice([1e-6, 1e-2]),
        tie_word_embeddings=rng.random() < 0.5,
        num_attention_heads=heads,
        kv_lora_rank=rng.randint(4, 20),
        q_lora_rank=rng.choice([None, 12]),
        qk_nope_head_dim=rng.randint(3, 12),
        qk_rope_head_dim=rng.choice([2, 4, 8]),
        v_head_dim=rng.randint(3, 12),
        rope_theta=rng.choice([100.0, 10000.0]),
        rope_scaling=rng.choice([None, YARN, YARN]),
        n_routed_experts=groups * per_group,
        n_group=groups,
        topk_group=topk_group,
        num_experts_per_tok=rng.randint(1, min(4, topk_group * per_group)),
        moe_intermediate_size=rng.randint(4, 20),
        n_shared_experts=rng.randint(1, 2),
        first_k_dense_replace=rng.randint(0, 1),
        norm_topk_prob=rng.random() < 0.7,
        routed_scaling_factor=rng.choice([1.0, 2.5]),
    )


def draw_v2(rng: random.Random, method: str) -> ModelConfig:
    config = draw_mla(rng)
    # transformers views V2's pairs as complex numbers in place, which takes even widths before them.
    even = dict(kv_lora_rank=2 * config.kv_lora_rank, qk_nope_head_dim=2 * config.qk_nope_head_dim)
    gate = dict(scoring_func="softmax", topk_method=method, norm_topk_prob=False)
    return replace(config, **even, **gate, rope_scaling=YARN)


def assert_same_function(model, twin, seed: int = 0) -> None:
    tokens = random_tokens(model.config, batch_size=3, length=24, seed=seed + 1)
    direction = torch.randn(3, 24, model.config.vocab_size, generator=torch.Generator().manual_seed(seed))
    gates = record_gates(model)
    theirs_chosen = []
    for name, module in twin.named_modules():
        if name.endswith("mlp.gate"):
            module.register_forward_hook(lambda module, args, out: theirs_chosen.append(out[2]))
    ours, theirs = model(tokens), twin(tokens).logits

    for gate, (_, chosen, scores), their_chosen in zip(model.gates, gates, theirs_chosen, strict=True):
        assert closest_call(gate, scores) > 1e-5  # else the comparison says nothing: take another seed
        assert torch.equal(chosen.sort().values, their_chosen.sort().values)
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

    (ours * direction).sum().backward()
    (theirs * direction).sum().backward()
    theirs = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        expected = theirs[hf_name(name)].grad
        assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item(), msg=name)


@pytest.mark.parametrize("seed", range(10))
def test_equals_deepseek_v3(seed):
    model = random_model(draw_mla(random.Random(seed)), seed)
    assert all((gate.expert_bias < 0).all() for gate in model.gates)
    assert_same_function(model, hf_twin(model), seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", ["greedy", "group_limited_greedy"])
def test_equals_deepseek_v2_with_its_softmax_gates_and_yarn(method, seed):
    config = draw_v2(random.Random(seed), method)
    model = random_model(config, seed)
    assert config.model_type == "deepseek_v2"
    assert_same_function(model, hf_twin(model), seed)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("scaling", [None, replace(YARN, mscale=1.0, mscale_all_dim=0.0)])
def test_equals_llama_for_multi_head_grouped_and_multi_query_attention(kv_heads, scaling):
    config = ModelConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=3, intermediate_size=40, rms_norm_eps=1e-2,
        num_attention_heads=4, num_key_value_heads=kv_heads, head_dim=10, rope_theta=100.0, rope_scaling=scaling,
    )  # fmt: skip
    model = random_model(config, kv_heads)
    assert config.model_type == "llama"
    assert_same_function(model, hf_twin(model))


def test_equals_llama_under_yarn_with_every_mscale():
    config = ModelConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, intermediate_size=40,
        num_attention_heads=4, rope_scaling=YARN,
    )  # fmt: skip
    model = random_model(config)
    assert_same_function(model, hf_twin(model))


def test_equals_llama_attention_with_deepseek_v2_experts_where_no_class_has_both():
    config = ModelConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=3, intermediate_size=40, num_attention_heads=4,
        n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=3, moe_intermediate_size=12,
        first_k_dense_replace=1, scoring_func="softmax", topk_method="greedy", norm_topk_prob=False,
    )  # fmt: skip
    assert config.model_type == ModelConfig.preset("deepseek-moe-16b").model_type == "deepseek"
    model = random_model(config)
    dense = replace(config, n_routed_experts=None)
    twin = LlamaForCausalLM(hf_config(dense)).eval()
    moe_config = hf_config(replace(config, kv_lora_rank=1, qk_nope_head_dim=1, qk_rope_head_dim=2, v_head_dim=1))
    for layer in twin.model.layers[1:]:
        layer.mlp = DeepseekV2Moe(moe_config)
    twin.load_state_dict(hf_state(model), strict=True)
    assert_same_function(model, twin)


def test_the_released_tensor_names_follow_from_one_prefix_and_one_renaming():
    model = random_model(ModelConfig.preset("tiny"))
    assert hf_state(model).keys() == hf_twin(model).state_dict().keys()
