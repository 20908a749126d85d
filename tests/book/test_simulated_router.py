"""The router alone against its own equations, and the biases against an assignment that is found without them."""

from itertools import permutations

import pytest
import torch
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st

from minids.book.probes.simulated_router import (
    best_assignment,
    chance,
    descend,
    dual,
    preferences,
    route,
    run_router,
    subgradient,
)

E, K = 4, 2
ROUNDING = 1e-5  # of the total of 16 affinities, which the flow sees as whole millionths


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


seeds = st.integers(0, 10**6)


@examples(20)
@given(seeds)
def test_the_load_less_its_mean_is_the_derivative_of_the_dual(seed):
    scores, bias, step = drawn(seed, 16, E), drawn(seed + 1, E), 1e-7
    sides = [[dual(scores, bias + sign * step * unit, K) for sign in (1, -1)] for unit in torch.eye(E)]
    slopes = [(above - below) / (2 * step) for above, below in sides]
    torch.testing.assert_close(subgradient(scores, bias, K), torch.tensor(slopes), rtol=0, atol=1e-4, check_dtype=False)


@examples(20)
@given(seeds, st.floats(0.1, 10), st.floats(-5, 5))
def test_the_dual_is_a_bound_wherever_the_biases_stand_and_blind_to_their_mean(seed, scale, shift):
    scores, bias = drawn(seed, 8, E), scale * (drawn(seed + 1, E) - 0.5)
    optimum = scores[best_assignment(scores, K)].sum().item()
    assert dual(scores, bias, K) >= optimum - ROUNDING
    assert dual(scores, bias + shift, K) == pytest.approx(dual(scores, bias, K))
    assert torch.equal(route(scores, bias + shift, K), route(scores, bias, K))


@examples(10)
@given(seeds)
def test_the_library_s_rule_with_falling_speed_finds_the_optimum_of_the_assignment(seed):
    scores = (drawn(seed, 32, E) + 0.3 * preferences(E)).sigmoid()
    optimum = scores[best_assignment(scores, K)].sum().item()
    biases = descend(scores, K)
    assert min(dual(scores, bias, K) for bias in biases) == pytest.approx(optimum, rel=2e-4)
    assert subgradient(scores, biases[-1], K).abs().max() <= 2
    assert dual(scores, torch.zeros(E), K) > 1.002 * optimum


def test_the_flow_is_the_best_of_all_assignments_and_needs_loads_that_can_be_even():
    scores = drawn(0, 4, 4)
    best = max(permutations(range(4)), key=lambda experts: sum(scores[n, i] for n, i in enumerate(experts)))
    assert best_assignment(scores, 1).nonzero()[:, 1].tolist() == list(best)
    two = best_assignment(scores, 2)
    assert two.sum(0).tolist() == two.sum(1).tolist() == [2] * 4
    with pytest.raises(ValueError, match="N K=10 is not possible: it must be a multiple of the 4 experts"):
        best_assignment(drawn(0, 5, 4), 2)


def test_the_router_collapses_without_a_bias_and_is_balanced_with_one():
    skewed, balanced = run_router(0, steps=60), run_router(0.01, steps=60)
    assert skewed.loads.sum(1).tolist() == [512 * 2] * 60
    assert skewed.max_violation.min() > 3
    assert balanced.max_violation[-20:].mean() < 1.5 * chance()
    loads, biases = balanced.loads.float(), balanced.biases
    before = torch.cat([torch.zeros(1, 16), biases[:-1]])
    torch.testing.assert_close(biases - before, 0.01 * (loads.mean(1, keepdim=True) - loads).sign())
    torch.testing.assert_close(balanced.max_violation, loads.amax(1) / 64 - 1)


def test_chance_is_what_is_left_where_tokens_choose_at_random():
    chosen = drawn(0, 100, 512, 16).topk(2).indices.flatten(1)
    busiest = torch.stack([row.bincount(minlength=16).max() for row in chosen])
    assert chance() == pytest.approx((busiest / 64 - 1).mean().item(), abs=0.02)


def test_preferences_that_change_end_in_reverse():
    assert torch.equal(preferences(), -preferences().flip(0))
    load = run_router(0, drift=True).loads.float()
    first, last = load[:10].mean(0), load[-10:].mean(0)
    assert first.argmax() == last.argmin() == 15
    assert torch.corrcoef(torch.stack([first, last.flip(0)]))[0, 1] > 0.99
