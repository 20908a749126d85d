"""The whole model: its losses assembled from parts by hand, causality, the cache, and who may move the bias."""

import math
from dataclasses import replace

import pytest
import torch
from configurations import configurations, examples, random_model, random_tokens
from hf_oracle import record_gates
from hypothesis import given
from torch.testing import assert_close

from minids import DeepSeek, ModelConfig
from minids.model.balance import sequence_balance_loss
from minids.model.layers import RMSNorm

TINY = replace(ModelConfig.preset("tiny"), num_hidden_layers=3)
DENSE = replace(TINY, n_routed_experts=None, num_nextn_predict_layers=0)
SOFTMAX = replace(TINY, scoring_func="softmax", topk_method="greedy", norm_topk_prob=False)


def test_the_terms_add_up_with_their_weights():
    model = random_model(TINY).train()
    terms = model.loss(random_tokens(TINY, 2, 10), mtp_weight=0.7, balance_weight=0.05)
    assert min(terms.next_token, terms.mtp, terms.balance) > 0.5
    assert_close(terms.total, terms.next_token + 0.7 * terms.mtp + 0.05 * terms.balance)


def test_the_weights_are_v3s_where_none_are_given():
    model = random_model(TINY).train()
    terms = model.loss(random_tokens(TINY, 2, 10))
    assert_close(terms.total, terms.next_token + 0.3 * terms.mtp + 1e-4 * terms.balance)


def test_the_main_loss_is_the_cross_entropy_of_the_next_token():
    model, tokens = random_model(TINY), random_tokens(TINY, 3, 10)
    log_p = model(tokens).log_softmax(dim=-1).detach()
    losses = torch.tensor([[-log_p[b, t, tokens[b, t + 1]] for t in range(9)] for b in range(3)])
    terms = model.loss(tokens)
    assert_close(terms.next_token.detach(), losses.mean())
    assert_close(terms.next_token_of_row, losses.mean(dim=1))
    assert not terms.next_token_of_row.requires_grad


def test_the_balance_loss_sums_over_all_gates_of_main_model_and_mtp():
    model, tokens = random_model(TINY).train(), random_tokens(TINY, 2, 10)
    gates = record_gates(model)
    balance = model.loss(tokens).balance
    lengths = [9, 9, 8]  # two MoE layers over all inputs, one MTP module over all but the first
    expected = sum(
        sequence_balance_loss(scores.view(2, length, 8), TINY.num_experts_per_tok)
        for (_, _, scores), length in zip(gates, lengths, strict=True)
    )
    assert_close(balance, expected)


def test_the_balance_loss_reaches_the_gates():
    tokens = random_tokens(TINY, 2, 10)

    def gate_gradients(term):
        model = random_model(TINY).train()
        term(model).backward()
        return [gate.weight.grad for gate in model.gates]

    weighted = gate_gradients(lambda model: model.loss(tokens, balance_weight=1.0).total)
    unweighted = gate_gradients(lambda model: model.loss(tokens, balance_weight=0.0).total)
    alone = gate_gradients(lambda model: model.loss(tokens).balance)
    for with_it, without, balance in zip(weighted, unweighted, alone, strict=True):
        assert balance.any()
        assert_close(with_it - without, balance, rtol=1e-3, atol=1e-5)


def test_a_dense_model_has_no_balance_loss_and_no_gates():
    model = random_model(DENSE).train()
    terms = model.loss(random_tokens(DENSE, 2, 10))
    assert terms.balance == terms.mtp == 0
    assert torch.equal(terms.total, terms.next_token)
    assert model.gates == model.update_expert_bias(0.1) == []


def test_an_untrained_model_knows_nothing():
    model = DeepSeek(replace(TINY, initializer_range=0.006))
    terms = model.loss(random_tokens(TINY, 4, 33))
    assert terms.next_token.item() == pytest.approx(math.log(512), abs=0.02)
    assert terms.mtp.item() == pytest.approx(math.log(512), abs=0.02)


@pytest.mark.parametrize("length", [1, 2])
def test_rows_too_short_to_predict_from_are_refused(length):
    with pytest.raises(ValueError, match="token"):
        random_model(TINY).loss(random_tokens(TINY, 2, length))


@torch.no_grad()
@examples(25)
@given(configurations())
def test_tokens_of_the_future_never_change_logits(config):
    model, tokens = random_model(config), random_tokens(config, 2, 8)
    other = torch.cat([tokens[:, :5], random_tokens(config, 2, 3, seed=1)], dim=1)
    assert_close(model(tokens)[:, :5], model(other)[:, :5], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_cache_rolled_back_forgets_and_an_overfull_one_stays_as_it_was():
    model, tokens = random_model(TINY), random_tokens(TINY, 2, 8)
    cache = model.new_cache(2, 8)
    model(tokens[:, :4], cache)
    model(random_tokens(TINY, 2, 3, seed=1), cache)
    with pytest.raises(ValueError, match="do not fit"):
        model(tokens[:, :2], cache)
    assert [layer.length for layer in cache] == [7] * 3
    for layer in cache:
        layer.length = 4
    assert_close(model(tokens[:, 4:], cache), model(tokens)[:, 4:], rtol=1e-4, atol=1e-4)


def test_sequences_of_a_batch_do_not_meet():
    model, tokens = random_model(TINY), random_tokens(TINY, 3, 8)
    alone = torch.cat([model(row[None]) for row in tokens])
    assert_close(model(tokens), alone, rtol=1e-4, atol=1e-4)


def chosen_by_each_gate(gates) -> list[torch.Tensor]:
    return [experts.flatten().bincount(minlength=TINY.n_routed_experts) for _, experts, _ in gates]


def test_the_bias_update_uses_up_the_load():
    model = random_model(TINY).train()
    gates, before = record_gates(model), [gate.expert_bias.clone() for gate in model.gates]
    model.loss(random_tokens(TINY, 4, 17))
    loads = model.update_expert_bias(0.01)
    assert_close(loads, chosen_by_each_gate(gates))
    for gate, old, load in zip(model.gates, before, loads, strict=True):
        mean = load.sum().item() / 8
        step = torch.tensor([0.01 * ((c < mean) - (c > mean)) for c in load.tolist()])
        assert_close(gate.expert_bias, old + step)
        assert not gate.load.any()


def test_a_second_update_without_tokens_moves_nothing():
    model = random_model(TINY).train()
    model.loss(random_tokens(TINY, 4, 17))
    model.update_expert_bias(0.01)
    before = [gate.expert_bias.clone() for gate in model.gates]
    assert not any(load.any() for load in model.update_expert_bias(0.01))
    assert_close([gate.expert_bias for gate in model.gates], before)


def test_micro_batches_add_up_to_the_load_and_the_update_of_the_whole_batch():
    tokens = random_tokens(TINY, 4, 17)
    whole, parts = random_model(TINY).train(), random_model(TINY).train()
    whole.loss(tokens)
    for row in tokens.split(1):
        parts.loss(row)
    assert_close(parts.update_expert_bias(0.01), whole.update_expert_bias(0.01))
    assert_close([g.expert_bias for g in parts.gates], [g.expert_bias for g in whole.gates])


def test_nothing_but_the_update_moves_the_bias():
    model = random_model(TINY).train()
    before = [gate.expert_bias.clone() for gate in model.gates]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        model.loss(random_tokens(TINY, 4, 17)).total.backward()
        optimizer.step()
    assert_close([gate.expert_bias for gate in model.gates], before, rtol=0, atol=0)


def test_speed_zero_uses_up_the_load_and_leaves_the_bias():
    model = random_model(TINY).train()
    before = [gate.expert_bias.clone() for gate in model.gates]
    model.loss(random_tokens(TINY, 4, 17))
    assert all(load.any() for load in model.update_expert_bias(0.0))
    assert_close([gate.expert_bias for gate in model.gates], before, rtol=0, atol=0)
    assert not any(gate.load.any() for gate in model.gates)


def test_gates_without_a_bias_still_report_their_load():
    model = random_model(SOFTMAX).train()
    model.loss(random_tokens(SOFTMAX, 4, 17))
    assert [load.sum().item() for load in model.update_expert_bias(0.01)] == [4 * 16 * 2, 4 * 16 * 2, 4 * 15 * 2]


def test_evaluation_touches_nothing():
    model = random_model(TINY)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    terms = model.loss(random_tokens(TINY, 4, 17))
    model(random_tokens(TINY, 1, 5), model.new_cache(1, 5))
    assert terms.balance == 0
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_training_and_evaluation_mode_compute_the_same_logits():
    model, tokens = random_model(TINY), random_tokens(TINY, 2, 10)
    assert torch.equal(model(tokens), model.train()(tokens))


@pytest.mark.parametrize("sigma", [0.006, 0.02])
def test_every_matrix_starts_with_the_configured_standard_deviation(sigma):
    model = DeepSeek(replace(TINY, initializer_range=sigma))
    norms = {name for name, module in model.named_modules() if isinstance(module, RMSNorm)}
    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight") in norms:
            assert (parameter == 1).all()
        else:
            assert parameter.ndim >= 2
            assert parameter.std().item() == pytest.approx(sigma, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.1 * sigma, name
    assert not any(gate.expert_bias.any() for gate in model.gates)


def test_only_the_embedding_starts_with_a_deviation_of_its_own():
    model = DeepSeek(replace(TINY, initializer_range=0.02, embedding_initializer_range=1.0))
    assert model.embed_tokens.weight.std().item() == pytest.approx(1, rel=0.1)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and name != "embed_tokens.weight":
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name


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


def test_weights_survive_their_state_dict():
    model, tokens = random_model(TINY), random_tokens(TINY, 2, 9)
    copy = DeepSeek(TINY).eval()
    copy.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(copy(tokens), model(tokens))


def test_autocast_to_bfloat16_stays_near_float32():
    model, tokens = DeepSeek(TINY).eval(), random_tokens(TINY, 2, 33)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(tokens).total
    assert loss.dtype == torch.float32
    assert_close(loss, model.loss(tokens).total, rtol=1e-2, atol=0)


def test_angles_and_biases_keep_float32_when_the_weights_are_cast():
    model = random_model(TINY)
    biases, angles = [gate.expert_bias.clone() for gate in model.gates], model.rope(0, 512)
    model.to(torch.bfloat16)
    assert_close(model.rope(0, 512), angles)
    assert_close([gate.expert_bias for gate in model.gates], biases)
