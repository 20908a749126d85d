"""FLOPs against torch's own counter and the published figures."""

import torch
from configurations import configurations, examples, random_model, random_tokens
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from minids import ModelConfig
from minids.cost.flops import decoding_flops_per_token, pre_training_hours_like_v3, training_flops_per_token

V3 = ModelConfig.preset("deepseek-v3")
dense_models = configurations(mixture=st.none(), mtp_depth=st.just(0))


def test_training_v3_takes_the_published_250_gflop_per_token_and_2664_thousand_hours():
    flops = training_flops_per_token(V3, 4096)
    assert flops == 6 * 36_625_618_432 + 3 * 61 * 128 * (192 + 128) * 2 * 2048
    assert round(flops / 1e9, 1) == 250.5
    assert pre_training_hours_like_v3(V3) == 2_664_000


def in_norms(model: torch.nn.Module) -> int:
    """Weights that the formulas count like all others and that no matrix product multiplies."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 1)


@examples(25)
@given(dense_models, st.integers(1, 40))
def test_flops_of_training_are_those_that_torch_counts(config, length):
    model = random_model(config)
    with FlopCounterMode(display=False) as counter:
        model(random_tokens(config, 1, length)).sum().backward()
    key, value = (config.qk_head_dim, config.v_head_dim) if config.uses_mla else (config.head_dim, config.head_dim)
    # torch multiplies the masked half of the scores as well
    masked = 3 * config.num_hidden_layers * config.num_attention_heads * (key + value) * length
    expected = training_flops_per_token(config, length) - 6 * in_norms(model) + masked
    assert counter.get_total_flops() == expected * length


@torch.no_grad()
@examples(25)
@given(dense_models, st.integers(2, 40))
def test_flops_of_decoding_are_those_that_torch_counts(config, context):
    model = random_model(config)
    cache = model.new_cache(1, context)
    model(random_tokens(config, 1, context - 1), cache)
    with FlopCounterMode(display=False) as counter:
        model(random_tokens(config, 1, 1), cache)
    assert counter.get_total_flops() == decoding_flops_per_token(config, context) - 2 * in_norms(model)
