"""The pictures of caches and scores: legible wherever sliders stand, and their numbers computed another way."""

import re
from dataclasses import replace

import numpy as np
import pytest
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st
from legibility import assert_legible

from minids.book.plots import draw_cache_kinds, draw_latent_budget, draw_score_parts
from minids.book.plots.c03_latent import share_of_distance, share_of_rotated
from minids.cost.accounting import kv_cache_bytes
from minids.cost.published import REPORTS
from minids.model.config import ModelConfig

V3 = ModelConfig.preset("deepseek-v3")


def test_the_caches_of_each_kind_are_the_published_ones():
    fig = draw_cache_kinds(list(REPORTS))
    assert_legible(fig)
    assert "V3 (MLA): MHA 488.0, GQA 30.5, MQA 3.8, MLA 8.6" in fig.alt
    assert "LLM 67B (GQA): MHA 380.0, GQA 47.5" in fig.alt
    assert fig.texts[-1].get_text() == "Of 128K tokens V2 keeps 57 times less than with MHA"


def test_the_filled_dots_are_the_caches_of_the_models_as_released():
    dots = [line for line in draw_cache_kinds(list(REPORTS)).axes[0].lines if line.get_marker() == "o"]
    filled = [dot.get_xdata()[0] for dot in dots if dot.get_markerfacecolor() == dot.get_markeredgecolor()]
    assert filled == [kv_cache_bytes(ModelConfig.preset(name)) * 2**17 / 2**30 for name in REPORTS]


def test_without_latents_the_caches_claim_no_saving():
    fig = draw_cache_kinds(["deepseek-llm-7b"])
    assert fig.texts[-1].get_text() == "The cache of 128K tokens, with each kind of attention"


@examples(25)
@given(st.sampled_from(range(64, 2049, 64)), st.sampled_from(range(16, 257, 16)))
def test_wherever_the_sliders_stand_the_budget_is_legible_and_counts(latent, rope):
    fig = draw_latent_budget(replace(V3, kv_lora_rank=latent, qk_rope_head_dim=rope))
    assert_legible(fig)
    assert f"{61 * 2 * (latent + rope):,} bytes per token" in fig.alt
    assert any(f"{(latent + rope) / 256:.2f} groups" in text.get_text() for text in fig.texts)
    marks = [line.get_xdata()[0] for line in fig.axes[0].lines]
    per_group = 61 * 2 * 256 * 2**17 / 2**30
    assert marks == pytest.approx([*(2**i * per_group for i in range(8)), (latent + rope) / 256 * per_group])


# ---------------------------------------------------------------------------------------------------
# Two parts of a score


def test_a_row_of_equal_scores_says_nothing_and_a_shift_changes_nothing():
    rng = np.random.default_rng(0)
    content, position = rng.normal(size=(2, 6, 6))
    flat = np.ones((6, 6)) * rng.normal(size=(6, 1))
    assert share_of_rotated(flat, position) == pytest.approx(1)
    assert share_of_rotated(content, flat) == pytest.approx(0)
    assert share_of_rotated(content + flat, position) == pytest.approx(share_of_rotated(content, position))


def test_the_share_is_that_of_variances_over_what_a_query_sees():
    rng = np.random.default_rng(1)
    content, position = rng.normal(size=(2, 5, 5))
    sums = [sum(part[t, : t + 1].var() * (t + 1) for t in range(5)) for part in (content, position)]
    assert share_of_rotated(content, position) == pytest.approx(sums[1] / sum(sums))


def test_what_depends_on_distance_alone_is_told_from_what_does_not():
    rng = np.random.default_rng(3)
    steps = np.subtract.outer(np.arange(30), np.arange(30))
    by_distance = rng.normal(size=60)[steps]
    by_token = np.tile(rng.normal(size=30), (30, 1))  # columns
    assert share_of_distance(by_distance + rng.normal(size=(30, 1))) == pytest.approx(1)
    assert share_of_distance(by_token) < 0.2
    assert 0.3 < share_of_distance(by_distance + by_token) < 0.7


def test_the_weights_in_the_picture_are_the_softmax_of_the_sum():
    rng = np.random.default_rng(2)
    content, position = rng.normal(size=(2, 2, 5, 5))
    fig = draw_score_parts(content, position, ["one", "two"], list("abcde"), "Two heads")
    assert_legible(fig)
    for column, part in enumerate((content, position)):
        drawn = np.ma.filled(fig.axes[column].images[0].get_array(), 0)
        row = part[0][3, :4]
        np.testing.assert_allclose(drawn[3, :4], row - row.mean())
    shown = np.ma.filled(fig.axes[5].images[0].get_array(), 0)
    scores = content[1] + position[1]
    for t in range(5):
        exponentials = np.exp(scores[t, : t + 1])
        np.testing.assert_allclose(shown[t, : t + 1], exponentials / exponentials.sum())
        assert not shown[t, t + 1 :].any()
    assert re.search(r"one: the rotated part makes \d+%", fig.alt)
