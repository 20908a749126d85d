"""Chapter 7's measurements: outliers that change nothing, and what the pictures of the recorded runs may say."""

import math

import numpy as np
import pytest
import torch
from configurations import configurations, examples, mixtures, random_model, random_tokens
from helpers_training import small_model
from hypothesis import given
from hypothesis import strategies as st
from pictures import title

from minids.book.plots.c07_training import (
    FIRST,
    chance,
    draw_fp8_arms,
    draw_fp8_loss,
    draw_outlier_loss,
    percent,
    relative_differences,
    smoothed,
    standing,
)  # fmt: skip
from minids.book.probes.outliers import losses_with_outliers, with_outliers
from minids.quantization.products import Recipe

WHOLE = Recipe(inputs=None, weights=None, gradients=None, over_tokens=None)


@torch.no_grad()
@examples(15)
@given(configurations(mixture=mixtures()), st.integers(0, 2**16))
def test_outliers_change_every_block_and_nothing_that_the_model_computes(config, channel):
    model, tokens = random_model(config).double(), random_tokens(config, 2, 6)
    changed = with_outliers(model, 2.0**12, channel % config.hidden_size)
    for ours, theirs in zip(changed.token_losses(tokens).nats, model.token_losses(tokens).nats, strict=True):
        torch.testing.assert_close(ours, theirs)
    before, after = model.state_dict(), changed.state_dict()
    norms = [name for name in before if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight"))]
    assert all((before[name] != after[name]).sum() == 1 for name in norms)


def test_one_scale_is_destroyed_by_outliers_that_tiles_survive():
    model = small_model(initializer_range=0.2, hidden_size=64).eval()
    tokens = random_tokens(model.config, 2, 32)
    losses = losses_with_outliers(model, tokens, (0, 24), {"tiles": Recipe.of_block(8), "one scale": WHOLE})
    away = {name: abs(after - before) for name, (before, after) in losses.items()}
    assert away["FP32"] < 1e-4 < away["tiles"] < away["one scale"] / 2


HISTORY = 4 + np.exp(-np.arange(60) / 20)


def made_up(**percents: tuple[float, float, float]) -> dict:
    """Results of three seeds; of each arm by how many percent its losses are above FP32's."""
    percents = {"FP32": (0, 0, 0), "FP32 again": (0.2, -0.3, 0.4), "BF16": (0.1, 0.1, -0.2)} | {
        name.replace("_", " "): values for name, values in percents.items()
    }
    runs = [
        {"arm": arm, "weights": seed, "data": seed, "history": (HISTORY * (1 + more / 100)).tolist(),
         "bits_per_byte": {"prose_and_code": (2 + seed / 10) * (1 + more / 100)}}
        for arm, values in percents.items() for seed, more in enumerate(values)
    ]  # fmt: skip
    return {"seeds": [0, 1, 2], "arms": dict.fromkeys(percents), "runs": runs[::-1]}


def test_differences_are_of_equal_seeds_and_in_percent():
    data = made_up(FP8=(0.1, 0.2, 0.4))
    torch.testing.assert_close(percent(data, "FP8"), np.array([0.1, 0.2, 0.4]))
    expected = np.repeat([[0.1], [0.2], [0.4]], 60, axis=1)
    torch.testing.assert_close(relative_differences(data, "FP8"), expected)
    assert chance(data) == pytest.approx(0.4)
    np.testing.assert_allclose(smoothed([1.0, 0, 0]), [1, 0.9, 0.81])


@pytest.mark.parametrize(
    ("arms", "said"),
    [({"FP8": (0.1, -0.1, 0.2), "FP4": (7, 8, 9)}, "FP8 is not separated from FP32; only “FP4” is higher"),
     ({"FP8": (0.1, -0.1, 0.2)}, "FP8 is not separated from FP32, and neither is any other arm"),
     ({"FP8": (1, 1.1, 1.2)}, "FP8’s loss is higher than FP32’s, and no other arm’s is")],
)  # fmt: skip
def test_the_title_says_what_the_runs_separate(arms, said):
    picture = draw_fp8_arms(made_up(**arms))
    assert title(picture) == said
    assert "FP32 again +0.10% (chance)" in picture.alt
    (grey,) = picture.axes[0].patches
    assert [grey.get_x(), grey.get_width()] == pytest.approx([-0.4, 0.8])


def test_the_curve_of_fp8_is_held_against_chance():
    data = made_up(FP8=(0.1, -0.1, 0.7))
    for run in data["runs"]:
        run["history"][0] *= 1.1 if run["arm"] == "FP8" and not run["weights"] else 1  # still felt where drawing begins
    fig = draw_fp8_loss(data)
    (ax,) = fig.axes
    drawn = relative_differences(data, "FP8")[:, FIRST:]
    assert np.abs(relative_differences(data, "FP8")).max() > 10 * np.abs(drawn).max()
    heights = [list(line.get_ydata()) for line in ax.lines]
    assert list(drawn.mean(axis=0)) in heights
    assert [[bound, bound] in heights for bound in (-0.25, 0.25)] == [True, True]
    assert f"FP8 within {np.abs(drawn).max():.2f}%" in fig.alt
    said = title(fig)
    assert said == "FP8 differs from FP32 by up to 0.7%, BF16 by 0.2%, FP32 from itself by 0.4%"


def test_what_chance_does_is_called_no_effect():
    data = made_up(FP8=(0.3, 0.35, 0.4), FP4=(0.3, 0.35, 0.41))
    assert [standing(data, arm) for arm in ("FP8", "FP4")] == ["not separated", "higher"]


def test_the_outliers_that_destroy_a_model_are_in_the_title():
    losses = {"FP32": [3.0, 3, 3], "wide tiles": [3, 3.5, 4], "tiles": [3, 3.02, 3.5], "one scale": [3, 4, 9]}
    fig = draw_outlier_loss((0, 10, 20), losses, math.log(512))
    said = title(fig)
    assert [list(line.get_ydata()) for line in fig.axes[0].lines] == [*losses.values(), [math.log(512)] * 2]
    assert fig.alt.endswith("FP32 3.0, wide tiles 4.0, tiles 3.5, one scale 9.0")
    assert said == "With one scale, outliers of $2^{10}$ do harm; tiles lose only 0.5 nats at $2^{20}$"
    harmless = {"FP32": [3.0, 3], "tiles": [3.0, 3.05]}
    assert title(draw_outlier_loss((0, 10), harmless, 6)) == "No outlier up to $2^{10}$ costs any of them 0.1 nats"
