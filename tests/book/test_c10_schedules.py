"""The published schedules at their corners and step by step, and the lines that are drawn of them."""

import math

import numpy as np
import pytest
from pictures import picture

from minids.book.plots.c10_schedules import settings_at
from minids.cost.published import V3_TOKENS, v3_settings_at
from minids.training.config import MINIATURE, TrainConfig

pytestmark = pytest.mark.xdist_group("pictures")  # in one process, as other pictures
BEFORE = 1e3  # tokens


@pytest.mark.parametrize(
    ("tokens", "rate", "batch", "speed", "weight"),
    [
        (0, 0, 3072, 0.001, 0.3),
        (234.5e9, 2.2e-4, 9216, 0.001, 0.3),  # half of the growth
        (469e9, 2.2e-4, 15360, 0.001, 0.3),
        (10e12 - BEFORE, 2.2e-4, 15360, 0.001, 0.3),
        (10e12, 2.2e-4, 15360, 0.001, 0.1),
        (12.15e12, 1.21e-4, 15360, 0.001, 0.1),  # half of the cosine
        (14.3e12 - BEFORE, 2.2e-5, 15360, 0.001, 0.1),
        (14.3e12, 2.2e-5, 15360, 0, 0.1),
        (14.633e12 - BEFORE, 2.2e-5, 15360, 0, 0.1),
        (14.633e12, 7.3e-6, 15360, 0, 0.1),
        (14.8e12, 7.3e-6, 15360, 0, 0.1),
    ],
)
def test_the_published_settings_at_their_corners(tokens, rate, batch, speed, weight):
    found = v3_settings_at(tokens)
    assert (found.bias_speed, found.mtp_weight) == (speed, weight)
    assert (found.learning_rate, found.batch_size) == pytest.approx((rate, batch), rel=1e-6)


def test_the_warm_up_is_linear_in_steps_of_a_growing_batch():
    tokens = 0.0
    for step in range(2100):
        if step % 100 == 0:
            # A step has the batch of its beginning, where the formula lets it grow within the step.
            assert v3_settings_at(tokens).learning_rate == pytest.approx(2.2e-4 * min(1, step / 2000), rel=1e-3)
        tokens += v3_settings_at(tokens).batch_size * 4096


def test_the_cosine_falls_as_one():
    share = np.linspace(0, 1, 50, endpoint=False)
    found = [v3_settings_at((10 + 4.3 * x) * 1e12).learning_rate for x in share]
    np.testing.assert_allclose(found, 2.2e-5 + 0.5 * (2.2e-4 - 2.2e-5) * (1 + np.cos(math.pi * share)), rtol=1e-9)


@pytest.mark.parametrize("tokens", [-1, 14.9e12, math.nan])
def test_other_numbers_of_tokens_are_refused(tokens):
    with pytest.raises(ValueError, match=r"0 to 1\.48e"):
        v3_settings_at(tokens)


def test_ours_are_those_of_the_configuration():
    config = TrainConfig(steps=50)
    for step in range(50):
        found = settings_at(config, (step + 0.5) / 50)
        assert (found.learning_rate, found.bias_speed) == (config.learning_rate_at(step), config.bias_speed_at(step))
        assert (found.batch_size, found.mtp_weight) == (4, config.mtp_weight_at(step))


def test_each_line_is_its_setting_over_its_largest_value():
    fields, config = ("learning_rate", "batch_size", "bias_speed", "mtp_weight"), MINIATURE
    for field, ax in zip(fields, picture("schedules: mini").axes, strict=True):
        theirs, ours = ax.lines
        for line, at in (
            (theirs, lambda share: v3_settings_at(share * V3_TOKENS)),
            (ours, lambda share: settings_at(config, share)),
        ):
            values = np.array([getattr(at(share), field) for share in line.get_xdata()])
            np.testing.assert_allclose(line.get_ydata(), values / values.max())


def test_title_and_text_say_where_both_change():
    alt = picture("schedules: mini").alt
    assert f"falls from {1 - 0.6:.0%} of the tokens on, from {10 / 14.8:.0%} in V3" in alt
    assert f"frozen for the last {31 / 900:.1%}, as in V3" in alt
    assert "V3 3,072 → 15,360, miniature 8" in alt
