"""The losses: what each token costs at each depth, which tokens count, and how the parts of a batch add up."""

import math
from dataclasses import replace

import pytest
import torch
from configurations import Float64, examples, random_model, random_tokens
from hf_oracle import record_gates
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from minids import DeepSeek, ModelConfig
from minids.model.balance import sequence_balance_loss

TINY = replace(ModelConfig.preset("tiny"), num_hidden_layers=3, num_nextn_predict_layers=2)
DENSE = replace(TINY, n_routed_experts=None, num_nextn_predict_layers=0)


@pytest.mark.kills("the balance loss is never added")
def test_the_terms_add_up_with_their_weights():
    model, tokens = random_model(TINY).train(), random_tokens(TINY, 2, 10)
    terms = model.loss(tokens, mtp_weight=0.7, balance_weight=0.05)
    assert min(terms.next_token, terms.mtp, terms.balance) > 0.5
    assert_close(terms.total, terms.next_token + 0.7 * terms.mtp + 0.05 * terms.balance)
    assert_close(model.loss(tokens).total, terms.next_token + 0.3 * terms.mtp + 1e-4 * terms.balance)  # V3's weights


def test_a_token_costs_minus_the_logarithm_of_its_probability_at_every_depth():
    model, tokens = random_model(TINY), random_tokens(TINY, 3, 10)
    hidden, _ = model.hidden_states(tokens[:, :-1])
    of_depths = [hidden, *(depth for depth, _ in model.mtp_hidden_states(tokens[:, :-1], hidden))]
    losses, terms = model.token_losses(tokens), model.loss(tokens)
    for k, (nats, hidden) in enumerate(zip(losses.nats, of_depths, strict=True)):
        log_p = model.lm_head(hidden).log_softmax(dim=-1)
        expected = [[-log_p[b, i, tokens[b, i + k + 1]].item() for i in range(9 - k)] for b in range(3)]
        assert_close(nats.detach(), torch.tensor(expected))
    assert_close(terms.next_token, losses.nats[0].mean())
    assert_close(terms.mtp, (losses.nats[1].mean() + losses.nats[2].mean()) / 2)
    assert_close(terms.nats_B, losses.nats[0].detach().sum(dim=1))


@pytest.mark.kills("MTP moves the mask twice", j=4)
@pytest.mark.kills("MTP ignores the mask", j=4)
@pytest.mark.parametrize("j", range(8))
def test_a_span_of_one_token_trains_the_positions_that_predict_it_and_no_others(j):
    """At depth k that is position j - k - 1, which has seen the tokens before j. A token before k + 1 has none."""
    model, logits = random_model(TINY), []
    model.lm_head.register_forward_hook(lambda module, args, out: logits.append(out))
    tokens, mask = torch.randperm(TINY.vocab_size)[None, :8], torch.arange(8)[None] == j  # no token twice
    for k, nats in enumerate(model.token_losses(tokens, mask).nats):
        trained, embedding = torch.autograd.grad(nats.sum(), (logits[k], model.embed_tokens.weight), retain_graph=True)
        assert (nats[0] != 0).tolist() == trained[0].any(dim=1).tolist() == [i == j - k - 1 for i in range(7 - k)]
        assert embedding[tokens[0]].any(dim=1).tolist() == [k < j and t < j for t in range(8)]


def test_a_mask_of_ones_is_no_mask_to_the_last_bit():
    model, tokens = random_model(TINY).train(), random_tokens(TINY, 3, 10)
    with_mask, without = model.loss(tokens, torch.ones_like(tokens)), model.loss(tokens)
    assert all(torch.equal(value, getattr(without, name)) for name, value in vars(with_mask).items())


@pytest.mark.parametrize("counted", [[], [0], [1]])
def test_where_no_token_counts_the_loss_is_0_and_trains_nothing(counted):
    """Token 0 is never predicted, and token 1 by the main head alone."""
    model, tokens = random_model(TINY), random_tokens(TINY, 2, 10)
    mask = torch.zeros_like(tokens)
    mask[:, counted] = 1
    terms = model.loss(tokens, mask)
    terms.total.backward()
    assert terms.mtp == 0
    assert (terms.next_token > 0) == (counted == [1])
    assert all(parameter.grad.isfinite().all() for parameter in model.layers.parameters())
    assert not any(parameter.grad.any() for parameter in model.mtp.parameters())


@examples(6)
@given(st.integers(1, 3), st.booleans(), st.integers(0, 100))
def test_unequal_micro_batches_add_up_to_the_terms_gradients_and_loads_of_the_batch(cut, masked, seed):
    weights = dict(mtp_weight=0.7, balance_weight=0.5)
    tokens = random_tokens(TINY, 4, 10, seed)
    whole = torch.rand(4, 10, generator=torch.Generator().manual_seed(seed)) < 0.4 if masked else torch.ones(4, 10)
    mask = whole if masked else None
    at_once, in_parts = (random_model(TINY).double().train() for _ in range(2))
    with Float64():
        expected = at_once.loss(tokens, mask, **weights)
        expected.total.backward()
        parts = []
        for rows in (slice(0, cut), slice(cut, 4)):
            parts.append(in_parts.loss(tokens[rows], mask[rows] if masked else None, whole_mask_BT=whole, **weights))
            parts[-1].total.backward()
    for name in ("total", "next_token", "mtp", "balance"):
        assert_close(sum(getattr(part, name) for part in parts), getattr(expected, name))
    assert_close(torch.cat([part.nats_B for part in parts]), expected.nats_B)
    assert_close(*([p.grad for p in model.parameters()] for model in (in_parts, at_once)), rtol=1e-5, atol=1e-6)
    assert_close(in_parts.update_expert_bias(0.01), at_once.update_expert_bias(0.01))


def test_the_balance_loss_sums_over_all_gates_of_main_model_and_mtp_and_reaches_them():
    model, tokens = random_model(TINY).train(), random_tokens(TINY, 2, 10)
    gates = record_gates(model)
    balance = model.loss(tokens).balance
    lengths = [9, 9, 8, 7]  # two MoE layers over all inputs, the MTP modules over all but the first ones
    expected = sum(
        sequence_balance_loss(scores.view(2, length, 8), TINY.num_experts_per_tok)
        for (_, _, scores), length in zip(gates, lengths, strict=True)
    )
    assert_close(balance, expected)
    balance.backward()
    assert all(gate.weight.grad.any() for gate in model.gates)


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


@pytest.mark.parametrize("shape", [(2, 1), (2, 3), (9,)])
def test_rows_too_short_to_predict_from_are_refused(shape):
    with pytest.raises(ValueError, match="at least 4"):
        random_model(TINY).loss(torch.zeros(shape, dtype=torch.long))


def test_autocast_to_bfloat16_stays_near_float32():
    model, tokens = DeepSeek(TINY).eval(), random_tokens(TINY, 2, 33)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(tokens).total
    assert loss.dtype == torch.float32
    assert_close(loss, model.loss(tokens).total, rtol=1e-2, atol=0)
