"""The schedules against lists written out by hand, and what a configuration refuses."""

import math

import pytest
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st

from minids.training.config import TrainConfig


def schedule(**options) -> TrainConfig:
    return TrainConfig(learning_rate=1.0, final_learning_rate_fraction=0.1, **options)


@pytest.mark.parametrize(
    ("steps", "warmup", "decay", "rates"),
    [
        (1, 0, 0, [1.0]),
        (1, 1, 0, [1.0]),
        (1, 0, 1, [0.1]),
        (4, 1, 0, [0.25, 0.5, 0.75, 1.0]),
        (3, 0, 1, [0.7, 0.4, 0.1]),
        (3, 0, 0, [1.0, 1.0, 1.0]),
        (4, 0.5, 0.5, [0.5, 1.0, 0.55, 0.1]),
        (100, 0.1, 0.4, [(i + 1) / 10 for i in range(10)] + [1.0] * 50 + [1 - 0.9 * (i + 1) / 40 for i in range(40)]),
    ],
)
def test_the_learning_rate_rises_stays_and_falls(steps, warmup, decay, rates):
    config = schedule(steps=steps, warmup_fraction=warmup, decay_fraction=decay)
    assert [config.learning_rate_at(step) for step in range(steps)] == pytest.approx(rates)


@examples(100)
@given(st.integers(1, 60), st.floats(0, 1), st.floats(0, 1))
def test_the_learning_rate_is_positive_and_never_above_its_peak(steps, warmup, decay):
    config = schedule(steps=steps, warmup_fraction=min(warmup, 1 - decay), decay_fraction=decay)
    rates = [config.learning_rate_at(step) for step in range(steps)]
    assert all(0 < rate <= 1 + 1e-12 for rate in rates)
    assert config.decay_start == steps or rates[-1] == pytest.approx(0.1)
    falling = rates[config.decay_start :]
    assert falling == sorted(falling, reverse=True)


def test_lambda_switches_when_the_decay_begins():
    config = TrainConfig(steps=10, decay_fraction=0.4, mtp_weight=0.3, final_mtp_weight=0.1)
    assert [config.mtp_weight_at(step) for step in range(10)] == [0.3] * 6 + [0.1] * 4
    assert config.learning_rate_at(5) == config.learning_rate > config.learning_rate_at(6)


@pytest.mark.parametrize(("fraction", "frozen"), [(0, 0), (0.034, 3), (0.5, 50), (1, 100)])
def test_gamma_is_zero_at_the_end_only(fraction, frozen):
    config = TrainConfig(steps=100, frozen_bias_fraction=fraction, bias_speed=0.01)
    assert [config.bias_speed_at(step) for step in range(100)] == [0.01] * (100 - frozen) + [0.0] * frozen


IMPOSSIBLE = {
    **dict.fromkeys(("steps", "batch_size", "sequence_length", "save_every", "fp8_block"), (0, -1, 2.5, True)),
    **dict.fromkeys(("learning_rate", "clip_norm"), (0, -1, math.inf, math.nan)),
    **dict.fromkeys(
        ("weight_decay", "mtp_weight", "final_mtp_weight", "balance_weight", "bias_speed"), (-1e-9, math.inf, math.nan)
    ),
    **dict.fromkeys(
        ("warmup_fraction", "decay_fraction", "frozen_bias_fraction", "final_learning_rate_fraction"),
        (-0.1, 1.1, math.nan),
    ),
    "seed": (-1, 0.5),
    "micro_batch_size": (0, -1, 9, 2.0, True),
    "dtype": ("float16", "", None),
    "betas": ((1.5, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9,), [0.9, 0.95]),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in IMPOSSIBLE.items() for value in values])
def test_a_setting_that_cannot_work_is_named_with_its_value(name, value):
    with pytest.raises(ValueError) as error:  # noqa: PT011, the message is compared below
        TrainConfig(**(dict(batch_size=8) | {name: value}))
    assert str(error.value).startswith(f"{name}={value!r} is not possible: it must be ")


def test_warm_up_and_decay_must_fit_into_the_run():
    with pytest.raises(ValueError, match=r"decay_fraction=0\.6 .* at most 0\.5 with warmup_fraction=0\.5"):
        TrainConfig(warmup_fraction=0.5, decay_fraction=0.6)


def test_settings_at_their_limits_are_possible():
    limits = dict.fromkeys(("steps", "batch_size", "micro_batch_size", "decay_fraction", "frozen_bias_fraction"), 1)
    zeros = ("warmup_fraction", "final_learning_rate_fraction", "weight_decay", "mtp_weight", "final_mtp_weight")
    TrainConfig(**limits, **dict.fromkeys((*zeros, "balance_weight", "bias_speed"), 0), betas=(0, 0))
