"""The bias update, the sequence-wise loss and MaxVio against cases worked out by hand and plain loops."""

import pytest
import torch
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from minids.model.balance import dead_experts, max_violation, sequence_balance_loss, update_expert_bias


@pytest.mark.kills("the bias moves the wrong way")
def test_overloaded_experts_go_down_and_underloaded_ones_up():
    bias = torch.tensor([0.5, 0.5, 0.5, 0.5])
    update_expert_bias(bias, torch.tensor([10, 0, 5, 5]), speed=0.1)
    assert_close(bias, torch.tensor([0.4, 0.6, 0.5, 0.5]))


@examples(50)
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=16), st.just(0.0) | st.floats(1e-4, 1))
def test_every_bias_moves_by_the_speed_towards_even_load_however_far_off_it_is(load, speed):
    bias = torch.zeros(len(load))
    update_expert_bias(bias, torch.tensor(load), speed)
    mean = sum(load) / len(load)
    expected = [0.0 if count == mean else speed if count < mean else -speed for count in load]
    assert_close(bias, torch.tensor(expected))


def test_repeated_updates_even_out_a_lopsided_router():
    scores, bias = torch.rand(2000, 8) + torch.linspace(0, 0.5, 8), torch.zeros(8)

    def load():
        return (scores + bias).topk(2, dim=1).indices.flatten().bincount(minlength=8)

    before = max_violation(load())
    for _ in range(200):
        update_expert_bias(bias, load(), speed=0.005)
    assert before > 0.5
    assert max_violation(load()) < 0.05


@pytest.mark.kills("the balance loss averages the batch first")
def test_two_sequences_lopsided_in_opposite_ways_do_not_cancel():
    one_way = torch.tensor([[0.9, 0.1], [0.9, 0.1]])
    both = torch.stack([one_way, one_way.flip(1)])
    assert_close(sequence_balance_loss(both, top_k=1), torch.tensor(1.8))


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_even_routing_gives_1_and_one_busy_expert_the_number_of_experts(top_k):
    even = torch.stack([torch.linspace(0.2, 0.9, 4).roll(shift) for shift in range(4)])[None]
    assert_close(sequence_balance_loss(even, top_k), torch.tensor(1.0))
    one = torch.tensor([[[1.0, 1e-6, 1e-6, 1e-6]] * 5])
    assert_close(sequence_balance_loss(one, top_k), torch.tensor(4.0 / top_k), rtol=1e-4, atol=0)


def by_the_equations(scores_BTE, top_k):
    """Equations 17 to 20, without α; f is a count and carries no gradient."""
    losses = []
    for scores_TE in scores_BTE:
        T, E = scores_TE.shape
        loss = 0
        for i in range(E):
            chosen = sum(int(scores[i] >= scores.sort(descending=True).values[top_k - 1]) for scores in scores_TE)
            P = sum(scores[i] / scores.sum() for scores in scores_TE) / T
            loss = loss + E / (top_k * T) * chosen * P
        losses.append(loss)
    return sum(losses) / len(losses)


@examples(30)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.data())
def test_sequence_loss_and_its_gradient_equal_the_equations(B, T, E, data):
    top_k = data.draw(st.integers(1, E))
    scores = torch.rand(B, T, E, generator=torch.Generator().manual_seed(0)).add(0.01).requires_grad_()
    ours, expected = sequence_balance_loss(scores, top_k), by_the_equations(scores, top_k)
    assert_close(ours, expected)
    assert_close(*(torch.autograd.grad(loss, scores)[0] for loss in (ours, expected)))


@pytest.mark.parametrize(
    ("load", "violation", "dead"),
    [([5, 5, 5, 5], 0.0, 0), ([10, 0, 5, 5], 1.0, 1), ([20, 0, 0, 0], 3.0, 3), ([3], 0.0, 0)],
)
def test_the_busiest_expert_is_held_against_the_mean_and_an_idle_one_is_dead(load, violation, dead):
    assert max_violation(torch.tensor(load)) == pytest.approx(violation)
    assert dead_experts(torch.tensor(load)) == dead


@pytest.mark.parametrize("measure", [max_violation, dead_experts])
def test_the_balance_of_no_tokens_is_refused(measure):
    with pytest.raises(ValueError, match="zero for every expert"):
        measure(torch.zeros(4, dtype=torch.int64))
