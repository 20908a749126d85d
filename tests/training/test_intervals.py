"""Intervals against published values, the equation that defines them, the bootstrap, and how often they hold."""

import math

import numpy as np
import pytest

from minids.training.intervals import BLOCKS, Z, _student, ratio_interval, share_interval, wilson_interval

REPETITIONS = 1000


@pytest.mark.parametrize(
    ("right", "asked", "interval"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_s_interval_has_the_values_published_by_newcombe_in_1998(right, asked, interval):
    assert wilson_interval(right, asked) == pytest.approx(interval, abs=5e-5)


@pytest.mark.parametrize(("right", "asked"), [(0, 1), (1, 1), (3, 7), (22, 23), (500, 1886)])
def test_wilson_s_bounds_are_the_shares_from_which_the_observed_one_is_as_far_as_allowed(right, asked):
    for bound in wilson_interval(right, asked):
        if 0 < bound < 1:
            assert abs(right / asked - bound) == pytest.approx(Z * math.sqrt(bound * (1 - bound) / asked))
        else:
            assert bound == right / asked


def test_the_quantiles_are_those_of_the_printed_tables():
    table = {1: 12.706, 2: 4.303, 3: 3.182, 5: 2.571, 10: 2.228, 15: 2.131, 30: 2.042, 10**6: 1.960}
    assert {degrees: _student(degrees) for degrees in table} == pytest.approx(table, rel=0.01)


def rows(rng: np.random.Generator, count: int, alike: float) -> tuple[np.ndarray, np.ndarray]:
    """Bits and bytes of rows at 2 bits per byte, in the mean; what is hard in a row is partly hard in the next."""
    size = rng.integers(200, 600, count)
    hard = rng.normal(size=count)
    for i in range(1, count):
        hard[i] = alike * hard[i - 1] + math.sqrt(1 - alike**2) * hard[i]
    return size * (2 + 0.3 * hard), size


@pytest.mark.parametrize(("count", "alike"), [(6, 0.0), (60, 0.0), (256, 0.0), (256, 0.4)])
def test_nineteen_of_twenty_intervals_hold_the_true_ratio_also_if_neighbours_are_alike(count, alike):
    rng = np.random.default_rng(0)
    found = [ratio_interval(rows(rng, count, alike)) for _ in range(REPETITIONS)]
    assert np.mean([low <= 2 <= high for low, high in found]) == pytest.approx(0.95, abs=0.025)


def test_of_two_domains_the_intervals_hold_the_common_ratio():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(REPETITIONS):
        (bits, size), other = rows(rng, 60, 0.0), rows(rng, 100, 0.0)
        low, high = ratio_interval((bits + 3 * 400, size), other)  # the rows of the first are harder by 3 bits per byte
        held.append(low <= 2 + 60 * 3 * 400 / (160 * 399.5) <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.025)


def test_the_half_width_is_that_of_a_bootstrap_of_the_same_blocks_and_the_gain_of_paired_rows_is_known_better():
    rng = np.random.default_rng(1)
    bits, size = rows(rng, 256, 0.3)
    other = 1.2 * bits + 10 * rng.normal(size=256)
    spread = {}
    for name, pair in {"score": (bits, size), "gain": (bits, other)}.items():
        x, y = (values.reshape(BLOCKS, -1).sum(axis=1) for values in pair)
        drawn = rng.integers(BLOCKS, size=(4000, BLOCKS))
        bootstrap = (x[drawn].sum(axis=1) / y[drawn].sum(axis=1)).std() * math.sqrt(BLOCKS / (BLOCKS - 1))
        low, high = ratio_interval(pair)
        assert (low + high) / 2 == pytest.approx(pair[0].sum() / pair[1].sum())
        assert (high - low) / 2 == pytest.approx(_student(BLOCKS - 1) * bootstrap, rel=0.05)
        spread[name] = (high - low) / (high + low)
    assert spread["gain"] < spread["score"] / 3


def test_what_cannot_be_estimated_has_no_interval():
    one, many = np.array([3.0]), np.arange(1.0, 9)
    assert ratio_interval((one, one)) is ratio_interval((many, many), (one, one)) is None
    assert share_interval(np.zeros(4), np.zeros(4)) is None
    assert share_interval(one, 2 * one) == wilson_interval(3, 6), "of a single row: as if answers were independent"


@pytest.mark.parametrize("alike", [False, True])
def test_a_share_s_interval_is_wilson_s_or_wider_where_answers_of_a_row_are_alike(alike):
    rng = np.random.default_rng(0)
    held, width = [], []
    for _ in range(REPETITIONS):
        chance = rng.beta(1, 9, 160) if alike else np.full(160, 0.1)
        asked = rng.integers(5, 40, 160)
        right = rng.binomial(asked, chance)
        low, high = share_interval(right, asked)
        independent = wilson_interval(right.sum(), asked.sum())
        assert low <= independent[0] + 1e-9
        assert independent[1] - 1e-9 <= high
        held.append(low <= 0.1 <= high)
        width.append((high - low) / (independent[1] - independent[0]))
    assert 0.92 <= np.mean(held) <= 0.985, "with independent answers, it is wider by chance in half of the cases"
    assert np.mean(width) > 1.5 if alike else np.mean(width) < 1.25


def test_wrong_answers_only_are_no_certainty():
    assert share_interval(np.zeros(5), np.full(5, 4)) == wilson_interval(0, 20)
