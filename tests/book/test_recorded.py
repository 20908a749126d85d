"""When two arms of an experiment count as separated."""

import pytest

from minids.book.recorded import Measured

FOUR = (1.80, 1.83, 1.81, 1.84)


@pytest.mark.parametrize(
    ("less", "separated"),
    [
        ((0.01, 0.01, 0.01, 0.011), True),
        ((1, 1, 5, 5), False),  # mean 3, deviation 4 / √3: 1.3 of them
        ((2, 2, 4, 4), True),  # mean 3, deviation 2 / √3: 2.6 of them
        ((0.01, 0.01, 0.01, -0.001), False),
        ((0, 0, 0, 0), False),
    ],
)
def test_an_arm_is_below_in_every_pair_and_by_two_deviations(less, separated):
    arm = Measured(tuple(bits - by for bits, by in zip(FOUR, less, strict=True)))
    assert arm.below(Measured(FOUR)) == separated
    assert not Measured(FOUR).below(arm)
    assert arm.apart(Measured(FOUR)) == Measured(FOUR).apart(arm) == separated


def test_arms_of_unequal_numbers_of_runs_are_not_compared():
    with pytest.raises(ValueError, match="zip"):
        Measured(FOUR).below(Measured(FOUR[:3]))
