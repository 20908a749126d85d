"""The pictures of recorded experiments, on made-up results: legible, and saying the means and ranges."""

import numpy as np
import pytest
from legibility import assert_legible

from minids.book.experiments.attention import MODELS, RANKS
from minids.book.plots import draw_attention_ablation, draw_low_rank
from minids.book.plots.c03_ablation import cached_per_layer, scores


def made_up(spread: float = 0.01, middle: float = 1.8, cost: float = 0.02) -> dict:
    """Results as the experiment records them; the arms lie `spread` apart."""
    rng = np.random.default_rng(0)
    runs = []
    for seed in range(3):
        for i, arm in enumerate(MODELS):
            value = middle + spread * i + 0.3 * spread * rng.random()
            row = {"arm": arm, "seed": seed, "report": {"bits_per_byte": {"prose_and_code": value, "all": value + 1}}}
            if arm == "MHA":
                values = [[3.0 * 0.97**k for k in range(384)] for _ in range(4)]
                at = {str(rank): value + cost * (192 / rank - 1) for rank in RANKS}
                row["measured"] = {"singular_values": values, "bits_per_byte": {"as trained": value} | at}
            runs.append(row)
    arms = {arm: {"model": config.to_hf(), "train": {}} for arm, config in MODELS.items()}
    return {"seeds": [0, 1, 2], "arms": arms, "runs": runs}


@pytest.mark.parametrize("spread", [0, 0.0005, 0.01, 0.2])
def test_the_ablation_is_legible_however_close_the_arms_are(spread):
    assert_legible(draw_attention_ablation(made_up(spread)))


def test_the_ablation_says_means_and_ranges():
    data = made_up()
    values = sorted(row["report"]["bits_per_byte"]["prose_and_code"] for row in data["runs"] if row["arm"] == "GQA")
    expected = f"GQA: 128 cached, {sum(values) / 3:.3f} ({values[0]:.3f} to {values[-1]:.3f})"
    assert expected in draw_attention_ablation(data).alt


def test_arms_of_equal_cache_stand_together_the_largest_first():
    labels = [
        tick.get_text().replace("\n", " ") for tick in draw_attention_ablation(made_up()).axes[0].get_xticklabels()
    ]
    assert labels == ["MHA", "GQA", "MLA 112 + 16", "MLA 96 + 32", "MQA", "MLA 48 + 16", "MLA 32 + 32"]
    assert [cached_per_layer(made_up(), arm) for arm in labels] == [384, 128, 128, 128, 64, 64, 64]


def test_every_seed_is_a_dot():
    dots = [line for line in draw_attention_ablation(made_up()).axes[0].lines if line.get_marker() == "o"]
    assert sum(len(line.get_xdata()) for line in dots) == 21


def test_bars_stand_at_the_means_and_the_title_compares_arms_with_seeds():
    data = made_up()
    fig = draw_attention_ablation(data)
    values = {arm: scores(data, arm) for arm in data["arms"]}
    means = {arm: sum(v) / 3 for arm, v in values.items()}
    bars = [line for line in fig.axes[0].lines if line.get_linewidth() == 3]
    assert sorted(line.get_ydata()[0] for line in bars) == pytest.approx(sorted(means.values()))
    arms = max(means.values()) / min(means.values()) - 1
    seeds = max(max(v) / min(v) - 1 for v in values.values())
    assert fig.texts[0].get_text() == f"Arms lie within {arms:.1%} of each other, seeds of one arm within {seeds:.1%}"
    assert arms > 3 * seeds


@pytest.mark.parametrize("cost", [0.0001, 0.02, 0.5])
def test_the_cut_ranks_are_legible_and_say_what_they_cost(cost):
    fig = draw_low_rank(made_up(cost=cost))
    assert_legible(fig)
    assert f"96: {cost:.3f}" in fig.alt
    assert f"16: {11 * cost:.3f}" in fig.alt
    assert f"rank 64 of 192 cost a trained model {2 * cost:.3f}" in fig.texts[-1].get_text()
    for line in fig.axes[0].lines:
        assert line.get_ydata()[0] == 1
        assert line.get_ydata()[1] == pytest.approx(0.97)
