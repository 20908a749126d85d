"""Counts against the published totals, instantiated models, and the weights that one token touches."""

import pytest
import torch
from configurations import configurations, examples, random_model, random_tokens
from hypothesis import assume, given

from minids import DeepSeek, ModelConfig, count_parameters
from minids.cost.parameters import released_bytes, released_numbers
from minids.model.moe import MoE

PUBLISHED = {  # all, and the active ones with the head; the reports print them rounded: 671B and 37B
    "deepseek-llm-7b": (6_910_365_696, 6_490_935_296),
    "deepseek-llm-67b": (67_425_001_472, 66_586_140_672),
    "deepseek-moe-16b": (16_375_728_128, 2_618_935_296),
    "deepseek-v2-lite": (15_706_484_224, 2_451_435_008),
    "deepseek-v2": (235_741_434_880, 20_851_512_320),
    "deepseek-v3": (671_026_419_200, 36_625_618_432),
}


def instantiated(config: ModelConfig) -> DeepSeek:
    with torch.device("meta"):
        return DeepSeek(config)


def weights(*modules: torch.nn.Module) -> int:
    """Parameters, shared ones once, and the expert biases, which are weights without a gradient."""
    module = torch.nn.ModuleList(modules)
    biases = [buffer for name, buffer in module.named_buffers() if name.endswith("expert_bias")]
    return sum(tensor.numel() for tensor in [*module.parameters(), *biases])


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_counted_and_the_instantiated_model_have_the_published_size(name):
    config = ModelConfig.preset(name)
    count, model = count_parameters(config), instantiated(config)
    assert (count.total, count.active) == PUBLISHED[name]
    assert weights(model) - weights(model.mtp) == count.total


@examples(100)
@given(configurations())
def test_the_formulas_count_what_is_instantiated(config):
    model, count = instantiated(config), count_parameters(config)
    moes = [layer.mlp for layer in model.layers if isinstance(layer.mlp, MoE)]
    norms = [norm for layer in model.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    assert count.breakdown == {
        "embedding": weights(model.embed_tokens),
        "attention": weights(*(layer.self_attn for layer in model.layers)),
        "dense_ffn": weights(*(layer.mlp for layer in model.layers if layer.mlp not in moes)),
        "routed_experts": weights(*(moe.experts for moe in moes)),
        "shared_experts": weights(*(moe.shared_experts for moe in moes if config.n_shared_experts)),
        "router": weights(*(moe.gate for moe in moes)),
        "norms": weights(model.norm, *norms),
        "head": 0 if config.tie_word_embeddings else weights(model.lm_head),
    }
    assert count.total == sum(count.breakdown.values()) == weights(model) - weights(model.mtp)
    assert (count.mtp, count.head_matmul) == (weights(model.mtp), weights(model.lm_head))


@examples(130)
@given(configurations())
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
    touched += experts + sum(bias.numel() for bias in biases if bias is not None)  # all of them take part in the choice
    assert count.active_routed_experts == experts
    assert count.active_with_embedding == touched
    # The row of the embedding is looked up, not multiplied; as a head the same matrix is.
    assert count.active == touched - (0 if config.tie_word_embeddings else count.embedding)
    assert count.active_body == count.active - weights(model.lm_head)


def test_mini_and_its_dense_twin_are_equally_large_for_a_token():
    mini, dense = (count_parameters(ModelConfig.preset(name)) for name in ("mini", "mini-dense"))
    assert dense.active == pytest.approx(mini.active, rel=0.01)


def test_the_released_checkpoint_of_v3_is_counted_to_the_unit():
    """The hub's census of V3's files, by dtype, and their 641 GiB."""
    v3 = ModelConfig.preset("deepseek-v3")
    assert released_numbers(v3) == {"F8_E4M3": 680_571_043_840, "BF16": 3_918_786_560, "F32": 41_555_600}
    assert released_bytes(v3) == 688_574_839_360
    for name in ("deepseek-llm-7b", "deepseek-moe-16b", "deepseek-v2-lite", "mini-dense"):
        with pytest.raises(ValueError, match="V3"):
            released_numbers(ModelConfig.preset(name))
