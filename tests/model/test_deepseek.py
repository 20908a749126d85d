"""The whole model: causality, who may move the biases of the gates, and how the weights begin."""

from dataclasses import replace

import pytest
import torch
from configurations import configurations, examples, random_model, random_tokens
from hf_oracle import record_gates
from hypothesis import given
from torch.testing import assert_close

from minids import DeepSeek, ModelConfig
from minids.model.layers import RMSNorm

TINY = replace(ModelConfig.preset("tiny"), num_hidden_layers=3)
DENSE = replace(TINY, n_routed_experts=None, num_nextn_predict_layers=0)


@torch.no_grad()
@examples(25)
@given(configurations())
def test_tokens_of_the_future_never_change_logits(config):
    model, tokens = random_model(config), random_tokens(config, 2, 8)
    other = torch.cat([tokens[:, :5], random_tokens(config, 2, 3, seed=1)], dim=1)
    assert_close(model(tokens)[:, :5], model(other)[:, :5], rtol=1e-4, atol=1e-5)


def test_sequences_of_a_batch_do_not_change_each_other():
    model, tokens = random_model(TINY), random_tokens(TINY, 3, 8)
    assert_close(model(tokens), torch.cat([model(row[None]) for row in tokens]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("speed", [0.01, 0.0])
def test_the_update_uses_up_the_load_and_moves_each_bias_against_it(speed):
    model = random_model(TINY).train()
    gates, before = record_gates(model), [gate.expert_bias.clone() for gate in model.gates]
    model.loss(random_tokens(TINY, 4, 17))
    loads = model.update_expert_bias(speed)
    assert_close(loads, [experts.flatten().bincount(minlength=8) for _, experts, _ in gates])
    mean = [load.sum() / 8 for load in loads]
    expected = [bias + speed * (mean - load).sign() for bias, mean, load in zip(before, mean, loads, strict=True)]
    assert_close([gate.expert_bias for gate in model.gates], expected)
    assert not any(load.any() for load in model.update_expert_bias(speed))  # a second time nothing moves
    assert_close([gate.expert_bias for gate in model.gates], expected)


def test_gates_without_a_bias_still_report_their_load():
    config = replace(TINY, scoring_func="softmax", topk_method="greedy", norm_topk_prob=False)
    model = random_model(config).train()
    model.loss(random_tokens(config, 4, 17))
    assert [load.sum().item() for load in model.update_expert_bias(0.01)] == [4 * 16 * 2, 4 * 16 * 2, 4 * 15 * 2]


def test_evaluation_touches_nothing_and_gives_the_logits_of_training():
    model, tokens = random_model(TINY), random_tokens(TINY, 4, 17)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert model.loss(tokens).balance == 0
    logits = model(tokens, model.new_cache(4, 17))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert torch.equal(model.train()(tokens), logits)


@pytest.mark.parametrize(("sigma", "of_embedding"), [(0.006, None), (0.02, None), (0.02, 1.0)])
def test_every_matrix_starts_with_the_configured_standard_deviation(sigma, of_embedding):
    model = DeepSeek(replace(TINY, initializer_range=sigma, embedding_initializer_range=of_embedding))
    norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, RMSNorm)}
    for name, parameter in model.named_parameters():
        if name in norms:
            assert (parameter == 1).all()
        else:
            expected = of_embedding or sigma if name == "embed_tokens.weight" else sigma
            assert parameter.std().item() == pytest.approx(expected, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.1 * expected, name
    assert not any(gate.expert_bias.any() for gate in model.gates)


def test_tied_embeddings_are_one_matrix_with_one_gradient():
    tied_config = replace(DENSE, tie_word_embeddings=True)
    tied, untied, tokens = random_model(tied_config), random_model(DENSE), random_tokens(DENSE, 2, 9)
    assert tied.lm_head.weight is tied.embed_tokens.weight
    untied.load_state_dict(tied.state_dict())
    assert torch.equal(tied(tokens), untied(tokens))
    tied.loss(tokens).total.backward()
    untied.loss(tokens).total.backward()
    both = untied.embed_tokens.weight.grad + untied.lm_head.weight.grad
    assert_close(tied.embed_tokens.weight.grad, both)


def test_angles_and_biases_keep_float32_when_the_weights_are_cast():
    model = random_model(TINY)
    biases, angles = [gate.expert_bias.clone() for gate in model.gates], model.rope(0, 512)
    model.to(torch.bfloat16)
    assert_close(model.rope(0, 512), angles)
    assert_close([gate.expert_bias for gate in model.gates], biases)
