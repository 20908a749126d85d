"""Gate and experts against plain Python loops over tokens, groups and experts."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from configurations import examples, float64, mixtures, randomize
from hf_oracle import closest_call
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from minids.model.balance import sequence_balance_loss
from minids.model.config import ModelConfig
from minids.model.moe import ROW_MULTIPLE, Experts, Gate, MoE, fill_up

CONFIG = ModelConfig(
    vocab_size=10, hidden_size=6, num_hidden_layers=1, intermediate_size=8, num_attention_heads=1,
    n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=5,
)  # fmt: skip
GROUPS = replace(CONFIG, n_group=4, topk_group=2)
seeds = st.integers(0, 1000)


def make(cls, config: ModelConfig, seed: int = 0):
    module = cls(config).eval()
    randomize(module, seed)
    return module


def gate_with(scores: list[float], **changes) -> Gate:
    """A sigmoid gate that gives the input (1,) these affinities."""
    config = replace(CONFIG, n_routed_experts=len(scores), hidden_size=1, head_dim=2, **changes)
    gate = Gate(config).eval()
    gate.weight.data = torch.tensor(scores).logit()[:, None]
    return gate


def choose_by_hand(scores: list[float], bias: list[float], c: ModelConfig) -> list[int]:
    ranking = [score + b for score, b in zip(scores, bias, strict=True)]
    eligible = range(c.n_routed_experts)
    if c.topk_method != "greedy":
        size, best = c.n_routed_experts // c.n_group, 2 if c.topk_method == "noaux_tc" else 1
        groups = [range(g * size, (g + 1) * size) for g in range(c.n_group)]
        if c.n_group > 1:
            groups.sort(key=lambda group: sum(sorted(ranking[e] for e in group)[-best:]), reverse=True)
        eligible = [e for group in groups[: c.topk_group] for e in group]
    return sorted(sorted(eligible, key=lambda e: ranking[e], reverse=True)[: c.num_experts_per_tok])


def gate_by_hand(gate: Gate, x: Tensor) -> dict[int, Tensor]:
    """Equations 13 to 16 for one token: the experts it chooses, and their weights."""
    c, experts = gate.config, range(gate.config.n_routed_experts)
    logits = [gate.weight[e] @ x for e in experts]
    if c.scoring_func == "sigmoid":
        scores = [1 / (1 + torch.exp(-logit)) for logit in logits]
    else:
        scores = [logit.exp() / sum(other.exp() for other in logits) for logit in logits]
    bias = [0.0] * c.n_routed_experts if gate.expert_bias is None else gate.expert_bias.tolist()
    chosen = choose_by_hand([score.item() for score in scores], bias, c)
    total = sum(scores[e] for e in chosen) if c.norm_topk_prob else 1
    return {e: scores[e] / total * c.routed_scaling_factor for e in chosen}


def swiglu_by_hand(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return down @ (F.silu(gate @ x) * (up @ x))


def mixture_by_hand(moe: MoE, x: Tensor) -> Tensor:
    """Equation 12 for one token, without u itself: each shared expert, then each chosen one."""
    out, width = torch.zeros_like(x), moe.config.moe_intermediate_size
    for i in range(moe.config.n_shared_experts or 0):
        rows, shared = slice(i * width, (i + 1) * width), moe.shared_experts
        out = out + swiglu_by_hand(
            x, shared.gate_proj.weight[rows], shared.up_proj.weight[rows], shared.down_proj.weight[:, rows]
        )
    for e, weight in gate_by_hand(moe.gate, x).items():
        out = out + weight * swiglu_by_hand(x, *moe.experts.gate_up_proj[e].chunk(2), moe.experts.down_proj[e])
    return out


@examples(60)
@given(mixtures(), st.integers(1, 12), st.floats(-3, 1), seeds)
def test_choices_weights_output_and_gradients_equal_a_loop_for_any_shape(entries, tokens, highest_bias, seed):
    torch.manual_seed(seed)
    with float64():
        moe = make(MoE, replace(CONFIG, **entries), seed).double()
        if moe.gate.expert_bias is not None:
            moe.gate.expert_bias.uniform_(highest_bias - 1, highest_bias)  # s + b of any sign
        x = torch.randn(1, tokens, CONFIG.hidden_size, dtype=torch.float64, requires_grad=True)
        weights, chosen, scores = moe.gate(x[0])
        assume(closest_call(moe.gate, scores) > 1e-6)  # ties may fall either way
        by_hand = [gate_by_hand(moe.gate, token) for token in x[0]]
        assert [sorted(row) for row in chosen.tolist()] == [sorted(row) for row in by_hand]
        for row, experts, expected in zip(weights, chosen.tolist(), by_hand, strict=True):
            assert_close(row, torch.stack([expected[e] for e in experts]))
        out, expected = moe(x)[0][0], torch.stack([mixture_by_hand(moe, token) for token in x[0]])
        assert_close(out, expected)
        direction, inputs = torch.randn_like(out), [x, *moe.parameters()]
        ours, theirs = (torch.autograd.grad((y * direction).sum(), inputs) for y in (out, expected))
        assert_close(ours, theirs)


def test_bias_chooses_but_never_weighs():
    gate = gate_with([0.8, 0.6, 0.4, 0.2])
    gate.expert_bias.copy_(torch.tensor([-5.0, 0.0, 0.0, 3.0]))
    weights, experts, _ = gate(torch.ones(1, 1))
    assert dict(zip(experts[0].tolist(), weights[0].tolist(), strict=True)) == pytest.approx({3: 0.25, 1: 0.75})


def test_a_masked_group_loses_even_when_every_biased_score_is_negative():
    gate = gate_with([0.9, 0.8, 0.3, 0.2, 0.3, 0.2], n_group=3, topk_group=1)
    gate.expert_bias.fill_(-2.0)
    _, experts, _ = gate(torch.ones(1, 1))
    assert sorted(experts[0].tolist()) == [0, 1]


def test_v3_scores_a_group_by_its_two_best_experts_and_v2_by_its_best():
    scores = dict(scores=[0.9, 0.1, 0.1, 0.6, 0.7, 0.2], n_group=2, topk_group=1)
    _, of_v3, _ = gate_with(**scores, topk_method="noaux_tc")(torch.ones(1, 1))
    _, of_v2, _ = gate_with(**scores, topk_method="group_limited_greedy")(torch.ones(1, 1))
    assert sorted(of_v3[0].tolist()) == [3, 4]
    assert 0 in of_v2[0].tolist()


def test_the_bias_takes_part_in_choosing_the_group():
    gate = gate_with([0.9, 0.8, 0.5, 0.5], n_group=2, topk_group=1)
    gate.expert_bias.copy_(torch.tensor([0.0, 0.0, 1.0, 1.0]))
    _, experts, _ = gate(torch.ones(1, 1))
    assert sorted(experts[0].tolist()) == [2, 3]


def test_a_token_stays_within_its_groups():
    gate = make(Gate, GROUPS)
    _, experts, _ = gate(torch.randn(200, 6))
    assert all(len({e // 2 for e in row}) <= 2 for row in experts.tolist())
    assert all(len(set(row)) == 2 for row in experts.tolist())


@pytest.mark.parametrize("factor", [1.0, 2.5, 16.0])
def test_normalised_weights_sum_to_the_scaling_factor(factor):
    weights, _, _ = make(Gate, replace(CONFIG, routed_scaling_factor=factor))(torch.randn(20, 6))
    assert_close(weights.sum(dim=1), torch.full((20,), factor))


def test_softmax_gates_of_v2_are_scaled_but_not_normalised():
    config = replace(
        CONFIG, scoring_func="softmax", topk_method="greedy", norm_topk_prob=False, routed_scaling_factor=16.0
    )
    gate, x = make(Gate, config), torch.randn(20, 6)
    weights, _, _ = gate(x)
    assert gate.expert_bias is None
    assert_close(weights, 16 * (x @ gate.weight.T).softmax(dim=1).topk(2).values)
    assert (weights.sum(dim=1) < 16).all()


def test_no_gradient_sees_the_bias():
    gate, x = make(Gate, CONFIG), torch.randn(20, 6)
    gate(x)[0].square().sum().backward()
    assert gate.weight.grad.any()
    assert not gate.expert_bias.requires_grad
    assert [name for name, _ in gate.named_parameters()] == ["weight"]


def test_routing_is_decided_in_float32_under_autocast():
    gate, x = make(Gate, CONFIG), torch.randn(200, 6)
    with torch.autocast("cpu", torch.bfloat16):
        weights, experts, scores = gate(x)
    expected = gate(x)
    assert weights.dtype == scores.dtype == torch.float32
    assert torch.equal(experts, expected[1])
    assert torch.equal(scores, expected[2])


def test_load_is_counted_in_training_mode_only_and_adds_up():
    gate = make(Gate, CONFIG)
    gate(torch.randn(50, 6))
    assert not gate.load.any()
    gate.train()
    first, second = gate(torch.randn(30, 6))[1], gate(torch.randn(20, 6))[1]
    chosen = [*first.flatten().tolist(), *second.flatten().tolist()]
    assert gate.load.tolist() == [chosen.count(e) for e in range(8)]
    assert gate.load.sum() == 50 * 2


def test_counting_and_bias_take_no_part_in_the_weights():
    gate, x = make(Gate, CONFIG), torch.randn(30, 6)
    evaluated, trained = gate(x), gate.train()(x)
    assert all(torch.equal(a, b) for a, b in zip(evaluated, trained, strict=True))


def test_the_load_is_not_stored_and_the_bias_is():
    assert make(Gate, CONFIG).state_dict().keys() == {"weight", "expert_bias"}
    assert Gate(CONFIG).expert_bias.dtype == torch.float32


def experts_by_hand(experts: Experts, x_ND: Tensor, weights_NK: Tensor, experts_NK: Tensor) -> Tensor:
    rows = []
    for x, weights, chosen in zip(x_ND, weights_NK, experts_NK.tolist(), strict=True):
        outs = [swiglu_by_hand(x, *experts.gate_up_proj[e].chunk(2), experts.down_proj[e]) for e in chosen]
        rows.append(sum(weight * out for weight, out in zip(weights, outs, strict=True)))
    return torch.stack(rows)


def assert_experts_equal_the_loop(config: ModelConfig, experts_NK: Tensor) -> None:
    experts, tokens = make(Experts, config), len(experts_NK)
    x = torch.randn(tokens, config.hidden_size, requires_grad=True)
    weights = torch.rand(experts_NK.shape, requires_grad=True)
    out, expected = experts(x, weights, experts_NK), experts_by_hand(experts, x, weights, experts_NK)
    assert_close(out, expected, rtol=1e-4, atol=1e-5)
    direction = torch.randn_like(out)
    ours, theirs = (
        torch.autograd.grad((y * direction).sum(), (x, weights, experts.gate_up_proj, experts.down_proj))
        for y in (out, expected)
    )
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    idle = [e for e in range(config.n_routed_experts) if e not in experts_NK.flatten().tolist()]
    assert not ours[2][idle].any()


@examples(20)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(1, 40), seeds)
def test_experts_and_their_gradients_equal_a_loop(experts, busy, chosen, tokens, seed):
    """All tokens meet in the `busy` experts, the others get none; a single token and a single expert are among them."""
    torch.manual_seed(seed)
    busy = torch.randperm(experts)[:busy]
    experts_NK = torch.stack([busy[torch.randperm(len(busy))][:chosen] for _ in range(tokens)])
    assert_experts_equal_the_loop(
        replace(CONFIG, n_routed_experts=experts, num_experts_per_tok=experts_NK.shape[1]), experts_NK
    )


@pytest.mark.parametrize("tokens", [1, 2, 33, 100])
@pytest.mark.parametrize("expert", [0, 3, 7])
def test_experts_equal_a_loop_when_all_tokens_choose_the_same(tokens, expert):
    experts_NK = torch.tensor([[expert, (expert + 4) % 8]]).repeat(tokens, 1)
    assert_experts_equal_the_loop(CONFIG, experts_NK)


@pytest.mark.parametrize("tokens", [50, 400])
def test_experts_under_autocast_stay_near_the_loop(tokens):
    """With few rows as they are, and with many filled up."""
    assert (2 * tokens >= ROW_MULTIPLE * 8) == (tokens == 400)
    experts, x = make(Experts, CONFIG), torch.randn(tokens, 6, requires_grad=True)
    weights = torch.rand(tokens, 2, requires_grad=True)
    experts_NK = torch.stack([torch.randperm(8)[:2] for _ in range(tokens)])
    with torch.autocast("cpu", torch.bfloat16):
        out = experts(x, weights, experts_NK)
    expected = experts_by_hand(experts, x, weights, experts_NK)
    assert_close(out.float(), expected, rtol=0.05, atol=0.02)
    inputs = (x, weights, *experts.parameters())
    for ours, theirs in zip(*(torch.autograd.grad(y.float().sum(), inputs) for y in (out, expected)), strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


@examples(40)
@given(st.lists(st.integers(0, 3 * ROW_MULTIPLE), min_size=1, max_size=5), seeds)
def test_filling_up_adds_rows_of_weight_0_and_moves_the_others_together(counts, seed):
    torch.manual_seed(seed)
    token, weight = torch.arange(1, sum(counts) + 1), torch.rand(sum(counts)) + 1
    filled_token, filled_weight, filled = fill_up(token, weight, torch.tensor(counts))
    assert filled.tolist() == [-(-count // ROW_MULTIPLE) * ROW_MULTIPLE for count in counts]
    assert len(filled_token) == len(filled_weight) == filled.sum()
    groups = zip(token.split(counts), weight.split(counts), filled_token.split(filled.tolist()), strict=True)
    for (tokens, weights, filled_tokens), filled_weights in zip(
        groups, filled_weight.split(filled.tolist()), strict=True
    ):
        assert torch.equal(filled_tokens[: len(tokens)], tokens)
        assert torch.equal(filled_weights[: len(tokens)], weights)
        assert not filled_tokens[len(tokens) :].any()
        assert not filled_weights[len(tokens) :].any()


def test_no_tokens_give_no_rows():
    out = make(Experts, CONFIG)(torch.zeros(0, 6), torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.long))
    assert out.shape == (0, 6)


def test_one_token_never_depends_on_the_others():
    moe, x = make(MoE, replace(GROUPS, n_shared_experts=1)), torch.randn(3, 40, 6)
    alone = torch.cat([moe(x[:, t : t + 1])[0] for t in range(40)], dim=1)
    assert_close(moe(x)[0], alone, rtol=1e-4, atol=1e-5)


def test_the_balance_loss_of_a_mixture_is_that_of_its_sequences_in_training_only():
    moe, x = make(MoE, CONFIG), torch.randn(3, 7, 6)
    assert moe(x)[1] == 0
    scores = moe.gate(x.flatten(0, 1))[2].view(3, 7, 8)
    assert_close(moe.train()(x)[1], sequence_balance_loss(scores, top_k=2))
