"""Counts against the published totals, the instantiated models, and torch's own FLOP counter."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from configurations import configurations, examples, mixtures, random_model, random_tokens, splits
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from minids import DeepSeek, ModelConfig, count_parameters
from minids.cost.accounting import (
    absorption_pays_from,
    attention_kind,
    attention_parameters,
    decoding_flops_per_token,
    expansion_pays_from,
    kv_cache_bytes,
    kv_cache_bytes_by_kind,
    kv_cache_elements,
    mla_cached_numbers,
    mla_multiplications,
    released_bytes,
    released_numbers,
    training_flops_per_token,
)
from minids.cost.published import REPORTS
from minids.model.attention import attend
from minids.model.mla import MLA
from minids.model.moe import MoE
from minids.model.mtp import MTPModule

PUBLISHED = {
    "deepseek-llm-7b": 6_910_365_696,
    "deepseek-llm-67b": 67_425_001_472,
    "deepseek-moe-16b": 16_375_728_128,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v3": 671_026_419_200,
}


def on_meta(make, *args):
    with torch.device("meta"):
        return make(*args)


def weights(module: torch.nn.Module) -> int:
    """Parameters, shared ones once, and the expert biases, which are weights without a gradient."""
    biases = [buffer for name, buffer in module.named_buffers() if name.endswith("expert_bias")]
    return sum(tensor.numel() for tensor in [*module.parameters(), *biases])


@pytest.mark.parametrize("name", PUBLISHED)
def test_total_is_the_published_one(name):
    count = count_parameters(ModelConfig.preset(name))
    assert count.total == sum(count.breakdown.values()) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_instantiated_model_has_the_published_size(name):
    model = on_meta(DeepSeek, ModelConfig.preset(name))
    assert weights(model) - weights(model.mtp) == PUBLISHED[name]


@examples(100)
@given(configurations())
def test_the_formulas_count_what_is_instantiated(config):
    model, count = on_meta(DeepSeek, config), count_parameters(config)
    assert count.mtp == weights(model.mtp)
    assert count.total == weights(model) - weights(model.mtp)
    assert count.embedding == weights(model.embed_tokens)
    assert count.attention == sum(weights(layer.self_attn) for layer in model.layers)
    moes = [layer.mlp for layer in model.layers if isinstance(layer.mlp, MoE)]
    assert count.routed_experts == sum(weights(moe.experts) for moe in moes)
    assert count.router == sum(weights(moe.gate) for moe in moes)
    assert count.shared_experts == sum(weights(moe.shared_experts) for moe in moes if count.shared_experts)
    assert count.norms == weights(model.norm) + sum(
        weights(layer.input_layernorm) + weights(layer.post_attention_layernorm) for layer in model.layers
    )
    assert count.head_matmul == weights(model.lm_head)
    assert count.head == (0 if config.tie_word_embeddings else weights(model.lm_head))
    assert count.dense_ffn == sum(weights(layer.mlp) for layer in model.layers if layer.mlp not in moes)


@pytest.mark.parametrize(
    ("name", "body", "with_head", "with_embedding"),
    [
        ("deepseek-moe-16b", 2_409_220_096, 2_618_935_296, 2_828_650_496),
        ("deepseek-v2-lite", 2_241_719_808, 2_451_435_008, 2_661_150_208),
        ("deepseek-v2", 20_327_224_320, 20_851_512_320, 21_375_800_320),
        ("deepseek-v3", 35_698_939_392, 36_625_618_432, 37_552_297_472),
    ],
)
def test_the_three_conventions_of_active(name, body, with_head, with_embedding):
    count = count_parameters(ModelConfig.preset(name))
    assert (count.active_body, count.active, count.active_with_embedding) == (body, with_head, with_embedding)


@pytest.mark.parametrize("name", ["deepseek-llm-7b", "deepseek-llm-67b"])
def test_every_weight_of_a_dense_model_is_active(name):
    count = count_parameters(ModelConfig.preset(name))
    assert count.active_with_embedding == count.total


def test_a_tied_head_is_multiplied_but_not_stored():
    tied = count_parameters(replace(ModelConfig.preset("tiny"), tie_word_embeddings=True))
    untied = count_parameters(ModelConfig.preset("tiny"))
    assert untied.total - tied.total == 512 * 64
    assert untied.active == tied.active


@examples(100)
@given(configurations(mixture=mixtures()))
def test_active_weights_are_those_that_one_token_touches(config):
    assume(config.hidden_size > 1)  # of a single number the norms leave only the sign, which has no gradient
    model, count = random_model(config), count_parameters(config)
    parameters = dict(model.named_parameters())
    logits = model(random_tokens(config, 1, 1))
    gradients = torch.autograd.grad(logits.square().sum(), list(parameters.values()), allow_unused=True)
    touched = experts = 0
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        if gradient is None:
            assert name.startswith("mtp.")  # no part of the computation
        elif ".experts." in name:
            experts += gradient[gradient.flatten(1).any(dim=1)].numel()
        else:
            touched += parameter.numel()
    biases = [layer.mlp.gate.expert_bias for layer in model.layers if isinstance(layer.mlp, MoE)]
    touched += experts + sum(bias.numel() for bias in biases if bias is not None)  # each has its say in the choice
    assert count.active_routed_experts == experts
    assert count.active_with_embedding == touched
    # The row of the embedding is looked up, not multiplied; as a head the same matrix is.
    assert count.active == touched - (0 if config.tie_word_embeddings else count.embedding)


@pytest.mark.parametrize(
    ("name", "attention", "moe_layer", "active_moe_layer", "embedding"),
    [
        ("deepseek-moe-16b", 16_777_216, 571_080_704, 69_337_088, 209_715_200),
        ("deepseek-v2-lite", 13_763_072, 571_080_704, 69_337_088, 209_715_200),
        ("deepseek-v2", 149_227_520, 3_822_878_720, 189_562_880, 524_288_000),
        ("deepseek-v3", 187_107_328, 11_320_164_608, 398_196_992, 926_679_040),
    ],
)
def test_the_building_blocks_of_a_layer(name, attention, moe_layer, active_moe_layer, embedding):
    config = ModelConfig.preset(name)
    count, layers = count_parameters(config), config.num_hidden_layers - config.first_k_dense_replace
    fixed = count.shared_experts + count.router
    assert attention_parameters(config) == attention
    assert (count.routed_experts + fixed) // layers == moe_layer
    assert (count.active_routed_experts + fixed) // layers == active_moe_layer
    assert count.embedding == count.head == embedding


def test_the_instantiated_blocks_of_v3():
    config = ModelConfig.preset("deepseek-v3")
    assert weights(on_meta(MLA, config)) == 187_107_328
    assert weights(on_meta(MoE, config)) == 11_320_164_608
    assert weights(on_meta(MTPModule, config, 61)) == count_parameters(config).mtp == 11_610_068_224


def test_the_released_checkpoint_of_v3_is_counted_to_the_unit():
    """The hub's census of V3's files, by dtype, and their 641 GiB."""
    config = ModelConfig.preset("deepseek-v3")
    numbers = released_numbers(config)
    assert numbers == {"F8_E4M3": 680_571_043_840, "BF16": 3_918_786_560, "F32": 41_555_600}
    assert sum(numbers.values()) == 684_531_386_000
    assert released_bytes(config) == 688_574_839_360


@pytest.mark.parametrize("name", ["deepseek-llm-7b", "deepseek-moe-16b", "deepseek-v2-lite", "mini-dense"])
def test_only_models_of_v3s_shape_have_its_release(name):
    with pytest.raises(ValueError, match="V3"):
        released_numbers(ModelConfig.preset(name))


@pytest.mark.parametrize(
    ("name", "elements"),
    [
        ("deepseek-llm-7b", 245_760),
        ("deepseek-llm-67b", 194_560),
        ("deepseek-moe-16b", 114_688),
        ("deepseek-v2-lite", 15_552),
        ("deepseek-v2", 34_560),
        ("deepseek-v3", 35_136),
    ],
)
def test_numbers_cached_per_token(name, elements):
    config = ModelConfig.preset(name)
    assert kv_cache_elements(config) == elements
    assert kv_cache_bytes(config) == 2 * elements
    assert kv_cache_bytes(config, 0.75) == 0.75 * elements


def test_v3_caches_the_published_70272_bytes():
    assert kv_cache_bytes(ModelConfig.preset("deepseek-v3")) == 70_272


def test_v2_saves_the_published_93_percent_against_67b_with_six_bits_a_number():
    v2, dense = (ModelConfig.preset(name) for name in ("deepseek-v2", "deepseek-llm-67b"))
    assert round(1 - kv_cache_bytes(v2, 6 / 8) / kv_cache_bytes(dense), 3) == 0.933


def bytes_within(thing: object) -> int:
    """The memory behind every tensor that can be reached from an object, also where a view shows part of it."""
    storages, seen, todo = {}, {}, [thing]
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, torch.Tensor):
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, dict):
            todo += thing.values()
        elif isinstance(thing, list | tuple | set):
            todo += thing
        elif hasattr(thing, "__dict__"):
            todo.append(vars(thing))
    return sum(storages.values())


@torch.no_grad()
@examples(40)
@given(configurations(), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(1, 3), splits(6))
def test_decoding_keeps_the_bytes_that_the_formula_counts_and_no_others(config, dtype, batch_size, cuts):
    model, tokens = random_model(config).to(dtype), random_tokens(config, batch_size, 6)
    cache, counted = model.new_cache(batch_size, 6), kv_cache_bytes(config, dtype.itemsize) * batch_size * 6
    assert bytes_within(cache) == counted
    without_cache = bytes_within(model)
    for a, b in pairwise(cuts):
        model(tokens[:, a:b], cache)
        assert bytes_within(cache) == counted
        assert bytes_within(model) == without_cache


def test_training_v3_takes_the_published_250_gflop_per_token():
    flops = training_flops_per_token(ModelConfig.preset("deepseek-v3"), 4096)
    assert flops == 6 * 36_625_618_432 + 3 * 61 * 128 * (192 + 128) * 2 * 2048
    assert round(flops / 1e9, 1) == 250.5


@pytest.mark.parametrize("latent", [True, False])
def test_flops_are_those_that_torch_counts(latent):
    attention = {} if latent else dict(kv_lora_rank=None, num_key_value_heads=2)
    config = replace(ModelConfig.preset("tiny"), n_routed_experts=None, num_nextn_predict_layers=0, **attention)
    model, length = random_model(config), 32
    with FlopCounterMode(display=False) as counter:
        model(random_tokens(config, 1, length)).sum().backward()
    norms = sum(p.numel() for p in model.parameters() if p.ndim == 1)  # no matrix products
    key, value = (24, 16) if latent else (16, 16)
    unmasked = 3 * config.num_hidden_layers * 4 * (key + value) * length  # torch multiplies the masked half, too
    expected = training_flops_per_token(config, length) - 6 * norms + unmasked
    assert counter.get_total_flops() / length == expected


@torch.no_grad()
@pytest.mark.parametrize("latent", [True, False])
def test_flops_of_decoding_are_those_that_torch_counts(latent):
    attention = {} if latent else dict(kv_lora_rank=None, num_key_value_heads=2)
    config = replace(ModelConfig.preset("tiny"), n_routed_experts=None, num_nextn_predict_layers=0, **attention)
    model, context = random_model(config), 32
    cache = model.new_cache(1, context)
    model(random_tokens(config, 1, context - 1), cache)
    with FlopCounterMode(display=False) as counter:
        model(random_tokens(config, 1, 1), cache)
    norms = sum(p.numel() for p in model.parameters() if p.ndim == 1)  # no matrix products
    assert counter.get_total_flops() == decoding_flops_per_token(config, context) - 2 * norms


def test_mini_and_its_dense_twin_are_equally_large_for_a_token():
    mini, dense = (count_parameters(ModelConfig.preset(name)) for name in ("mini", "mini-dense"))
    assert dense.active == pytest.approx(mini.active, rel=0.01)


# ---------------------------------------------------------------------------------------------------
# Three ways to attend over latents


def counted_by_torch(step) -> int:
    """Multiplications in a function's matrix products, as torch's own counter finds them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        step()
    return counter.get_total_flops() // 2


@examples(25)
@given(
    st.integers(1, 5), st.integers(1, 20), st.integers(1, 4), st.integers(1, 9), st.integers(1, 6), st.integers(1, 3),
    st.integers(1, 7),
)  # fmt: skip
def test_the_multiplications_are_those_that_torch_counts(new, older, heads, latent, nope, half_rope, value):
    config = ModelConfig(
        vocab_size=8, hidden_size=4, num_hidden_layers=3, intermediate_size=8, num_attention_heads=heads,
        kv_lora_rank=latent, qk_nope_head_dim=nope, qk_rope_head_dim=2 * half_rope, v_head_dim=value,
    )  # fmt: skip
    layer, context = MLA(config), new + older
    q_nope, q_rope = torch.randn(1, heads, new, nope), torch.randn(1, heads, new, 2 * half_rope)
    rows = torch.randn(1, context, latent + 2 * half_rope)
    count = mla_multiplications(config, context, new)
    assert count["expanded"] == counted_by_torch(lambda: layer.attend_naive(q_nope, q_rope, rows))
    assert count["absorbed"] == counted_by_torch(lambda: layer.attend_absorbed(q_nope, q_rope, rows))
    q, k = (torch.randn(1, heads, length, nope + 2 * half_rope) for length in (new, context))
    v = torch.randn(1, heads, context, value)

    def full_cache():
        layer.kv_b_proj(rows[:, -new:, :latent])
        attend(q, k, v, 1.0)

    assert count["full cache"] == counted_by_torch(full_cache)
    kept = rows[0, 0].numel()
    all_heads = (k.numel() + v.numel()) // context
    assert mla_cached_numbers(config) == {"full cache": all_heads, "expanded": kept, "absorbed": kept}


@examples(50)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20))
def test_the_lines_cross_where_the_closed_form_says(new, latent, nope, value):
    config = ModelConfig(
        vocab_size=8, hidden_size=4, num_hidden_layers=1, intermediate_size=8, num_attention_heads=2,
        kv_lora_rank=latent, qk_nope_head_dim=nope, qk_rope_head_dim=2, v_head_dim=value,
    )  # fmt: skip

    def absorbing_saves(context):
        count = mla_multiplications(config, context, new)
        return count["expanded"] - count["absorbed"]

    crossing = absorption_pays_from(config, new)
    if crossing is None:
        assert new >= expansion_pays_from(config)
        assert absorbing_saves(10**9) <= 0
    else:
        assert new < expansion_pays_from(config)
        before = math.floor(crossing * (1 - 1e-9))
        assert before < new or absorbing_saves(before) <= 0  # the context includes the new tokens
        assert absorbing_saves(math.floor(crossing * (1 + 1e-9)) + 1) > 0


def test_expanding_pays_from_171_queries_in_v2_and_v3():
    for name in ("deepseek-v2-lite", "deepseek-v2", "deepseek-v3"):
        assert expansion_pays_from(ModelConfig.preset(name)) == pytest.approx(512 * 256 / 768)


def test_where_both_cost_the_same_in_every_context_none_pays():
    config = ModelConfig(
        vocab_size=8, hidden_size=4, num_hidden_layers=1, intermediate_size=8, num_attention_heads=1,
        kv_lora_rank=4, qk_nope_head_dim=2, qk_rope_head_dim=2, v_head_dim=2,
    )  # fmt: skip
    assert expansion_pays_from(config) == 4
    assert absorption_pays_from(config, 4) is None
    assert absorption_pays_from(config, 3) == 12
    assert expansion_pays_from(config, context=12) == 3  # the same crossing, asked the other way


def test_without_latents_there_is_nothing_to_absorb():
    dense = ModelConfig.preset("deepseek-llm-7b")
    for count in (
        lambda: mla_multiplications(dense, 4096), lambda: mla_cached_numbers(dense),
        lambda: expansion_pays_from(dense), lambda: absorption_pays_from(dense, 1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="no latents"):
            count()


@pytest.mark.parametrize("name", REPORTS)
def test_the_own_kind_of_each_model_is_its_own_cache(name):
    config = ModelConfig.preset(name)
    assert kv_cache_bytes_by_kind(config)[attention_kind(config)] == kv_cache_bytes(config)


def test_latents_of_a_dense_model_are_4_and_a_half_head_widths():
    sizes = kv_cache_bytes_by_kind(ModelConfig.preset("deepseek-llm-7b"))
    assert sizes["MLA"] == 2 * 30 * 4.5 * 128
    assert sizes["MLA"] / sizes["MQA"] == 2.25
