"""The gate and the three stages after it against plain Python loops over tokens, groups and experts."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from configurations import Float64, examples, mixtures, randomize
from hf_oracle import closest_call
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from minids.book.planting import poisoned_memory
from minids.model.balance import sequence_balance_loss
from minids.model.config import ModelConfig
from minids.model.moe import Experts, Gate, MoE, combine, dispatch

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
    moe = make(MoE, replace(CONFIG, **entries), seed).double()
    if moe.gate.expert_bias is not None:
        moe.gate.expert_bias.uniform_(highest_bias - 1, highest_bias)  # s + b of any sign
    x = torch.randn(1, tokens, CONFIG.hidden_size, dtype=torch.float64, requires_grad=True)
    with Float64():
        (weights, chosen, scores), out = moe.gate(x[0]), moe(x)[0][0]
    assume(closest_call(moe.gate, scores) > 1e-6)  # ties may fall either way
    by_hand = [gate_by_hand(moe.gate, token) for token in x[0]]
    assert [sorted(row) for row in chosen.tolist()] == [sorted(row) for row in by_hand]
    for row, experts, expected in zip(weights, chosen.tolist(), by_hand, strict=True):
        assert_close(row, torch.stack([expected[e] for e in experts]))
    expected = torch.stack([mixture_by_hand(moe, token) for token in x[0]])
    direction, inputs = torch.randn_like(out), [x, *moe.parameters()]
    ours, theirs = ([y, *torch.autograd.grad((y * direction).sum(), inputs)] for y in (out, expected))
    assert_close(ours, theirs)


@pytest.mark.kills("the bias weighs")
def test_bias_chooses_but_never_weighs():
    gate = gate_with([0.8, 0.6, 0.4, 0.2])
    gate.expert_bias.copy_(torch.tensor([-5.0, 0.0, 0.0, 3.0]))
    weights, experts, _ = gate(torch.ones(1, 1))
    assert dict(zip(experts[0].tolist(), weights[0].tolist(), strict=True)) == pytest.approx({3: 0.25, 1: 0.75})


@pytest.mark.kills("the weight is the biased score minus the bias")
def test_small_scores_keep_their_weights_beside_a_large_bias():
    gate = gate_with([1e-8, 3e-8])
    gate.expert_bias.fill_(12.0)
    weights, experts, _ = gate(torch.ones(1, 1))
    assert dict(zip(experts[0].tolist(), weights[0].tolist(), strict=True)) == pytest.approx({0: 0.25, 1: 0.75})


@pytest.mark.kills("the bias is kept in BF16")
def test_biases_that_bfloat16_cannot_tell_apart_choose_also_in_a_bfloat16_model():
    gate = gate_with([0.5, 0.5], num_experts_per_tok=1)
    gate.expert_bias.copy_(torch.tensor([7.000, 7.012]))
    assert gate.to(torch.bfloat16)(torch.ones(1, 1))[1].item() == 1


def test_a_constant_added_to_the_biases_of_one_group_changes_the_choice():
    gate, scores = Gate(GROUPS), torch.rand(20, 8)
    assert not (gate.choose(scores) // 2 == 1).all()
    gate.expert_bias[2:4] += 1.0
    assert (gate.choose(scores) // 2 == 1).all()


@pytest.mark.kills("masked groups score zero")
@examples(60)
@given(seeds, st.sampled_from([CONFIG, GROUPS]), st.integers(-(2**13), 2**13))
def test_a_constant_added_to_all_biases_changes_no_choice(seed, config, constant):
    """Group scores, sums of two, all move by twice the constant. All numbers are multiples of 2^-10: sums are exact."""
    gate, generator = Gate(config), torch.Generator().manual_seed(seed)
    scores = torch.randint(1, 2**10, (20, 8), generator=generator) * 2**-10
    gate.expert_bias.copy_(torch.randint(-(2**10), 2**10, (8,), generator=generator) * 2**-10)
    before = gate.choose(scores)
    gate.expert_bias += constant * 2**-10
    assert torch.equal(gate.choose(scores), before)


@pytest.mark.kills("masked groups score zero")
def test_a_masked_group_loses_even_when_every_biased_score_is_negative():
    gate = gate_with([0.9, 0.8, 0.3, 0.2, 0.3, 0.2], n_group=3, topk_group=1)
    gate.expert_bias.fill_(-2.0)
    _, experts, _ = gate(torch.ones(1, 1))
    assert sorted(experts[0].tolist()) == [0, 1]


def gate_of_the_authors(logits_NE: Tensor, bias_E: Tensor, c: ModelConfig) -> tuple[Tensor, Tensor]:
    """A third witness, (choices, weights): `top2_sum_gate` of deepseek-ai/TileKernels (tile_kernels/torch), restated.

    It differs from ours in three ways. Of equal scores it takes the first, by a stable sort; our topk may take any. Its
    denominator is the sum of the weights but at least 1e-20, ours is the sum plus 1e-20. With a softmax, it adds the
    bias to the logits, not to the scores.
    """
    sigmoid = c.scoring_func == "sigmoid"
    scores_NE = logits_NE.sigmoid() if sigmoid else logits_NE.softmax(dim=1)
    ranking_NE = (scores_NE if sigmoid else logits_NE) + bias_E
    if c.topk_group < c.n_group:  # otherwise there is nothing to mask
        by_group = ranking_NE.unflatten(1, (c.n_group, -1))
        of_groups = by_group.sort(dim=2, descending=True).values[..., :2].sum(dim=2)
        masked = of_groups.sort(dim=1, descending=True, stable=True).indices[:, c.topk_group :]
        ranking_NE = by_group.scatter(1, masked[..., None].expand(-1, -1, by_group.shape[2]), -torch.inf).flatten(1)
    chosen_NK = ranking_NE.sort(dim=1, descending=True, stable=True).indices[:, : c.num_experts_per_tok]
    weights_NK = scores_NE.gather(1, chosen_NK)
    return chosen_NK, weights_NK / weights_NK.sum(dim=1, keepdim=True).clamp(min=1e-20) * c.routed_scaling_factor


def gate_of_logits(config: ModelConfig) -> Gate:
    """A gate whose inputs are its logits."""
    gate = Gate(replace(config, hidden_size=config.n_routed_experts)).eval()
    gate.weight.data = torch.eye(config.n_routed_experts)
    return gate


@examples(60)
@given(mixtures(), st.floats(-3, 1), seeds)
def test_the_gate_is_that_of_the_authors_own_reference(entries, highest_bias, seed):
    assume(entries["topk_method"] == "noaux_tc")
    torch.manual_seed(seed)
    gate = gate_of_logits(replace(CONFIG, **entries | dict(scoring_func="sigmoid", norm_topk_prob=True)))
    gate.expert_bias.uniform_(highest_bias - 1, highest_bias)
    logits = torch.randn(20, gate.config.n_routed_experts)
    weights, chosen, scores = gate(logits)
    assume(closest_call(gate, scores) > 1e-6)  # ties may fall either way
    their_chosen, their_weights = gate_of_the_authors(logits, gate.expert_bias, gate.config)
    ours, theirs = (
        torch.zeros_like(scores).scatter(1, experts, values)
        for experts, values in ((chosen, weights), (their_chosen, their_weights))
    )
    assert_close(ours, theirs)


def test_the_authors_reference_differs_in_a_softmax_gate_and_for_tiny_scores():
    softmax, logits = gate_of_logits(replace(CONFIG, num_experts_per_tok=1)), torch.tensor([[0.6, 0.3] + [0.0] * 6])
    softmax.config = replace(softmax.config, scoring_func="softmax")
    softmax.expert_bias[1] = 0.2  # less than the distance of the logits, more than that of the scores
    assert softmax(logits)[1].item() == 1
    assert gate_of_the_authors(logits, softmax.expert_bias, softmax.config)[0].item() == 0
    tiny, logits = gate_of_logits(CONFIG), torch.tensor([1e-20] * 8).logit()[None]
    assert tiny(logits)[0].sum().item() == pytest.approx(2 / 3)
    assert gate_of_the_authors(logits, tiny.expert_bias, CONFIG)[1].sum().item() == pytest.approx(1)


@pytest.mark.kills("no scaling factor", factor=2.5)
@pytest.mark.parametrize("factor", [1.0, 2.5, 16.0])
def test_normalised_weights_sum_to_the_scaling_factor(factor):
    weights, _, _ = make(Gate, replace(CONFIG, routed_scaling_factor=factor))(torch.randn(20, 6))
    assert_close(weights.sum(dim=1), torch.full((20,), factor))


def test_routing_is_decided_in_float32_under_autocast():
    gate, x = make(Gate, CONFIG), torch.randn(200, 6)
    with torch.autocast("cpu", torch.bfloat16):
        weights, experts, scores = gate(x)
    expected = gate(x)
    assert weights.dtype == scores.dtype == torch.float32
    assert torch.equal(experts, expected[1])
    assert torch.equal(scores, expected[2])


@pytest.mark.kills("evaluation counts")
def test_load_is_counted_in_training_mode_only_and_adds_up():
    gate = make(Gate, CONFIG)
    gate(torch.randn(50, 6))
    assert not gate.load.any()
    gate.train()
    first, second = gate(torch.randn(30, 6))[1], gate(torch.randn(20, 6))[1]
    chosen = [*first.flatten().tolist(), *second.flatten().tolist()]
    assert gate.load.tolist() == [chosen.count(e) for e in range(8)]
    assert gate.load.sum() == 50 * 2


def test_the_bias_is_stored_and_not_trained_and_the_load_neither():
    gate = Gate(CONFIG)
    assert [name for name, _ in gate.named_parameters()] == ["weight"]
    assert gate.state_dict().keys() == {"weight", "expert_bias"}
    assert gate.expert_bias.dtype == torch.float32


@st.composite
def choices(draw) -> tuple[Tensor, int]:
    """Which experts (N, K) some tokens use, and how many experts there are. Of K busy ones, every token uses all."""
    E = draw(st.integers(1, 6))
    busy = draw(st.integers(1, E))
    N, K = draw(st.integers(1, 40)), draw(st.integers(1, busy))
    torch.manual_seed(draw(seeds))
    return torch.randperm(E)[:busy][torch.rand(N, busy).argsort(dim=1)[:, :K]], E


row_multiples = st.integers(1, 6).map(lambda multiple: ("minids.model.moe.ROW_MULTIPLE", multiple))
dtypes = st.sampled_from([torch.float32, torch.bfloat16])


@examples(80)
@given(choices(), dtypes, row_multiples)
def test_dispatch_makes_a_row_of_every_choice_sorted_by_expert(choices, dtype, row_multiple):
    """Many rows in bfloat16 are filled up to a multiple, by rows of token 0 and weight 0."""
    (experts_NK, E), multiple = choices, row_multiple[1]
    x, weights = torch.randn(len(experts_NK), 3), torch.rand(experts_NK.shape) + 1
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        patch.setattr(*row_multiple)
        rows_RD, route = dispatch(x, weights, experts_NK, E)
    assert torch.equal(rows_RD, x[route.token_R].to(dtype))
    counts = route.counts_E.tolist()
    fill = dtype == torch.bfloat16 and experts_NK.numel() >= multiple * E
    for e, tokens, of_expert in zip(range(E), route.token_R.split(counts), route.weight_R.split(counts), strict=True):
        expected = [(t, weights[t, k].item()) for t, k in (experts_NK == e).nonzero().tolist()]
        expected += [(0, 0.0)] * (-len(expected) % multiple if fill else 0)
        assert sorted(zip(tokens.tolist(), of_expert.tolist(), strict=True)) == sorted(expected)


@examples(80)
@given(choices(), dtypes, row_multiples)
def test_dispatch_experts_and_combine_and_their_gradients_equal_a_loop(choices, dtype, row_multiple):
    experts_NK, E = choices
    experts = Experts(E, CONFIG.hidden_size, CONFIG.moe_intermediate_size)
    randomize(experts)
    x = torch.randn(len(experts_NK), CONFIG.hidden_size, requires_grad=True)
    weights = torch.rand(experts_NK.shape, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        patch.setattr(*row_multiple)
        rows_RD, route = dispatch(x, weights, experts_NK, E)
        out = combine(experts(rows_RD, route.weight_R, route.counts_E), route, len(x)).float()
    by_hand = [
        sum(w * swiglu_by_hand(u, *experts.gate_up_proj[e].chunk(2), experts.down_proj[e]) for w, e in pairs)
        for u, pairs in zip(x, map(zip, weights, experts_NK), strict=True)
    ]
    direction, inputs = torch.randn_like(out), (x, weights, *experts.parameters())
    ours, theirs = ([y, *torch.autograd.grad((y * direction).sum(), inputs)] for y in (out, torch.stack(by_hand)))
    if dtype == torch.float32:
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    else:
        assert all((a - b).norm() <= 0.03 * (b.norm() + 1) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.kills("rows past the last group are left unwritten")
def test_nothing_is_read_that_was_not_written():
    """Neither of padding rows, nor of an expert without rows."""
    moe, x = make(MoE, CONFIG), torch.randn(1, 200, 6, requires_grad=True)  # enough rows to be padded
    moe.gate.expert_bias[3] -= 2
    with poisoned_memory(), torch.autocast("cpu", torch.bfloat16):
        out, _ = moe(x)
        gradients = torch.autograd.grad(out.sum(), [x, *moe.parameters()])
    assert all(values.isfinite().all() for values in (out, *gradients))


def test_no_tokens_give_no_rows():
    assert make(MoE, CONFIG)(torch.zeros(2, 0, 6))[0].shape == (2, 0, 6)


def test_another_pair_of_dispatch_and_combine_that_fit_each_other_changes_nothing():
    """As between machines: rows come in another order within an expert, and combine knows where they belong."""
    moe, x = make(MoE, replace(GROUPS, n_shared_experts=1)), torch.randn(2, 30, 6, requires_grad=True)

    def output_and_gradients() -> list[Tensor]:
        out, _ = moe(x)
        direction = torch.linspace(-1, 1, out.numel()).view_as(out)
        return [out, *torch.autograd.grad((out * direction).sum(), [x, *moe.parameters()])]

    def shuffle(x_ND: Tensor, weights_NK: Tensor, experts_NK: Tensor, n_experts: int) -> tuple[Tensor, SimpleNamespace]:
        rows_RD, route = dispatch(x_ND, weights_NK, experts_NK, n_experts)
        expert_R = torch.arange(n_experts).repeat_interleave(route.counts_E)
        order = (expert_R + torch.rand(len(expert_R))).argsort()
        shuffled = dict(weight_R=route.weight_R[order], counts_E=route.counts_E)
        return rows_RD[order], SimpleNamespace(**shuffled, order=order, route=route)

    def restore(outs_RD: Tensor, shuffled: SimpleNamespace, n_tokens: int) -> Tensor:
        return combine(outs_RD[shuffled.order.argsort()], shuffled.route, n_tokens)

    expected = output_and_gradients()
    moe.dispatch, moe.combine = shuffle, restore
    assert_close(output_and_gradients(), expected, rtol=1e-4, atol=1e-5)


def test_the_balance_loss_of_a_mixture_is_that_of_its_sequences_in_training_only():
    moe, x = make(MoE, CONFIG), torch.randn(3, 7, 6)
    assert moe(x)[1] == 0
    scores = moe.gate(x.flatten(0, 1))[2].view(3, 7, 8)
    assert_close(moe.train()(x)[1], sequence_balance_loss(scores, top_k=2))
