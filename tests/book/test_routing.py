"""What is measured of a model's routing against a loop over its layers, and that nothing stays changed."""

from contextlib import suppress
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from configurations import MOE, random_model, random_tokens
from torch import Tensor
from torch.testing import assert_close

from minids.book.probes import routing
from minids.book.probes.routing import (
    chosen_experts,
    groups_touched,
    information,
    information_and_control,
    loads,
    moe_layers,
    with_top_k,
    without_best,
    without_random,
    without_shared,
)
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek

# Three layers of 8 experts, 2 chosen, after a dense one; one more in an MTP module.
CONFIG = ModelConfig(**MOE, first_k_dense_replace=1, n_shared_experts=1, num_nextn_predict_layers=1)
TOKENS = random_tokens(CONFIG, 5, 20)


@torch.no_grad()
def rankings(model: DeepSeek) -> Tensor:
    """What each layer chooses by, s + b, (layers, B, T, E): a loop over the layers by hand."""
    x, rotation, found = model.embed_tokens(TOKENS), model.rope(0, TOKENS.shape[1]), []
    for i, layer in enumerate(model.layers):
        after_attention = x + layer.self_attn(layer.input_layernorm(x), rotation)
        if i > 0:
            gate = layer.mlp.gate
            logits = layer.post_attention_layernorm(after_attention) @ gate.weight.T
            found.append(logits.sigmoid() + gate.expert_bias)
        x = layer(x, rotation)[0]
    return torch.stack(found)


def ranked(model: DeepSeek, first: int, last: int) -> Tensor:
    """The experts in places `first` to `last - 1` of the ranking, in order of their numbers."""
    return rankings(model).argsort(dim=-1, descending=True)[..., first:last].sort(dim=-1).values


def chosen(model: DeepSeek) -> Tensor:
    return chosen_experts(model, TOKENS).sort(dim=-1).values


@torch.no_grad()
def hidden(model: DeepSeek) -> Tensor:
    return model.hidden_states(TOKENS)[0]


def test_the_chosen_experts_are_the_best_of_every_layer_of_the_body(monkeypatch):
    monkeypatch.setattr(routing, "BATCH", 2)
    model = random_model(CONFIG).train()
    assert torch.equal(chosen(model), ranked(model.eval(), 0, 2))
    assert chosen(model.train()).shape == (3, 5, 20, 2)
    assert model.training
    assert not any(gate.load.any() or gate._forward_hooks for gate in model.gates)


def test_without_the_best_the_next_best_are_chosen_and_weigh_as_much_together():
    model = random_model(CONFIG)
    with without_best(model, 3):
        assert torch.equal(chosen(model), ranked(model, 3, 5))
        weights, experts, scores = moe_layers(model)[0].gate(torch.randn(10, 64))
        own = torch.nn.functional.normalize(scores.gather(1, experts), p=1)  # s, not s + b
        assert_close(weights, own * CONFIG.routed_scaling_factor)
        with without_best(model, 1):
            assert torch.equal(chosen(model), ranked(model, 4, 6))
        assert torch.equal(chosen(model), ranked(model, 3, 5))
    with without_best(model, 0):
        assert torch.equal(chosen(model), ranked(model, 0, 2))


def test_without_random_ones_the_best_of_the_others_are_chosen():
    model, used = random_model(CONFIG), {}
    for seed in (0, 1):
        with without_random(model, 4, seed):
            ranking, found = rankings(model), chosen(model)
            used[seed] = [layer.unique() for layer in found]
            for layer, of_layer, left in zip(ranking, found, used[seed], strict=True):
                assert len(left) == 4
                assert torch.equal(of_layer, left[layer[..., left].topk(2).indices].sort(dim=-1).values)
    assert len({tuple(left.tolist()) for of_seed in used.values() for left in of_seed}) > 3


def test_with_another_top_k_so_many_of_the_best_are_chosen():
    model = random_model(CONFIG)
    with with_top_k(model, 5):
        assert torch.equal(chosen(model), ranked(model, 0, 5))
        with with_top_k(model, 1), without_best(model, 1):
            assert torch.equal(chosen(model), ranked(model, 1, 2))
        assert torch.equal(chosen(model), ranked(model, 0, 5))
    with pytest.raises(ValueError, match="top_k=9 is not possible: it must be 1 to 8"), with_top_k(model, 9):
        pass


def test_without_the_shared_expert_its_output_is_zero():
    model, silent = random_model(CONFIG), random_model(CONFIG)
    for moe in moe_layers(silent):
        torch.nn.init.zeros_(moe.shared_experts.down_proj.weight)
    with without_shared(model):
        assert_close(hidden(model), hidden(silent))
    has_none = DeepSeek(replace(CONFIG, n_shared_experts=None))
    with pytest.raises(ValueError, match="n_shared_experts=None"), without_shared(has_none):
        pass


@pytest.mark.parametrize(
    "change", [lambda m: without_best(m, 1), lambda m: without_random(m, 4), lambda m: with_top_k(m, 3), without_shared]
)
def test_the_model_is_itself_again_also_after_an_error(change):
    model = random_model(CONFIG)
    before, weights = hidden(model), deepcopy(model.state_dict())
    with suppress(KeyError), change(model):
        assert not torch.allclose(hidden(model), before, atol=1e-3)
        raise KeyError
    assert torch.equal(hidden(model), before)
    assert_close(model.state_dict(), weights, rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------
# Counts and information


def test_loads_and_groups_are_counted_as_a_loop_counts_them():
    experts = torch.rand(2, 3, 5, 8).argsort(dim=-1)[..., :4]
    for layer, counts in zip(experts, loads(experts, 8), strict=True):
        assert counts.tolist() == [layer.flatten().tolist().count(e) for e in range(8)]
    touched = [len({expert // 2 for expert in token}) for token in experts.flatten(0, 2).tolist()]
    assert groups_touched(experts, 8, n_groups=4) == pytest.approx(np.mean(touched))


@pytest.mark.parametrize(
    ("counts", "bits"),
    [
        ([[7, 0], [0, 7]], 1),
        ([[5, 5], [5, 5]], 0),
        ([[1, 3], [20, 60]], 0),
        (np.eye(4), 2),
        ([[2, 2, 0], [0, 0, 4]], 1),
    ],
)
def test_information_in_closed_cases(counts, bits):
    assert information(counts) == pytest.approx(bits, abs=1e-12)


def test_shuffled_labels_tell_nothing_and_true_ones_what_there_is_to_tell():
    labels = [0, 1] * 100
    by_label = torch.tensor(labels)[:, None, None].expand(200, 5, 2)
    found, control = information_and_control(by_label, labels, 2)
    assert found == pytest.approx(1)
    assert control < 0.02
    at_random = torch.randint(8, (200, 50, 2))
    assert max(information_and_control(at_random, labels, 8)) < 0.002
