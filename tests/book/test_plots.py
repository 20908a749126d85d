"""The pictures: what they say against the records they were given, and no text on top of another, by bounding boxes."""

import itertools
import math
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st
from legibility import assert_legible
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from minids.book.claims import ARTICLES, all_claims
from minids.book.plots import (
    draw_architecture,
    draw_attention,
    draw_caches,
    draw_claims,
    draw_conventions,
    draw_expert_load,
    draw_growth,
    draw_hours,
    draw_live_loss,
    draw_loss,
    draw_models,
    draw_parameters,
    draw_rotation,
    draw_wall,
    moe_layer_names,
)
from minids.book.plots.architecture import EVERYTHING, LATER, LIT
from minids.book.plots.c01_bill import printed
from minids.book.plots.style import INK, MUTED, PALE, PARTS, VERDICTS, readable_on, spread
from minids.cost.accounting import count_parameters, kv_cache_bytes
from minids.cost.published import REPORTS
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.model.rope import rope_frequencies

THREE = ("prose", "code", "arithmetic")


def made_up_run(steps: int = 60, domains=THREE, held_out=None, baseline=None, layers: int = 4, experts: int = 32):
    """Records and a report like those of a real run; MaxVio falls from 5 to about 0.2."""
    rng = np.random.default_rng(0)
    held_out = held_out or dict(zip(THREE, (1.62, 1.21, 2.05), strict=True))
    baseline = baseline or dict(zip(THREE, (2.31, 1.94, 2.63), strict=True))
    records = [
        {
            "step": step,
            "bits_per_byte": {d: held_out[d] + 3 * np.exp(-9 * step / steps) for d in domains},
            "max_violation": (0.2 + 5 * np.exp(-9 * step / steps) + 0.05 * rng.random(layers)).tolist(),
            "load": rng.integers(50, 150, (layers, experts)).tolist(),
        }
        for step in range(steps)
    ]
    together = {"all": 1.6} | ({"prose_and_code": 1.5} if len(domains) > 1 else {})
    report = {
        "tokens": steps * 2048,
        "bits_per_byte": {d: held_out[d] for d in domains} | together,
        "baseline_bits_per_byte": {d: baseline[d] for d in domains} | together,
    }
    return records, report


def names_of(layers: int) -> list[str]:
    return [*(f"layer {i + 2}" for i in range(layers - 1)), "MTP"]


def test_the_legibility_check_sees_overlaps_and_what_leaves_the_canvas():
    fig = Figure()
    for i in range(9):
        fig.text(0.1, 0.1 * i + 0.05, f"line {i}")
    assert_legible(fig)
    fig.text(0.11, 0.16, "on top")
    with pytest.raises(AssertionError, match="overlaps"):
        assert_legible(fig)
    fig.texts[-1].set_position((0.98, 0.5))
    with pytest.raises(AssertionError, match="leaves the canvas"):
        assert_legible(fig)


# ---------------------------------------------------------------------------------------------------
# The loss


@pytest.mark.parametrize(
    "run",
    [
        made_up_run(),
        made_up_run(steps=640),
        made_up_run(steps=1),
        made_up_run(domains=("prose", "code")),
        made_up_run(held_out={"text": 1.4}, baseline={"text": 2.0}, domains=("text",)),
        made_up_run(held_out=dict.fromkeys(THREE, 1.5)),
        made_up_run(held_out=dict(zip(THREE, (4.1, 3.9, 6.0), strict=True))),
        made_up_run(held_out=dict(zip(THREE, (0.9, 0.5, 0.1), strict=True))),
    ],
    ids=["usual", "long", "one step", "two domains", "own text", "all equal", "worse than the 5-gram", "far apart"],
)
def test_no_text_of_the_loss_picture_hides_another(run):
    assert_legible(draw_loss(*run))


@examples(8)
@given(st.tuples(*[st.floats(0.2, 5)] * 3), st.tuples(*[st.floats(0.5, 4)] * 3))
def test_the_loss_picture_stays_legible_whatever_the_numbers(held_out, baseline):
    numbers = (dict(zip(THREE, values, strict=True)) for values in (held_out, baseline))
    assert_legible(draw_loss(*made_up_run(30, THREE, *numbers)))


def test_the_alt_text_of_the_loss_has_every_number():
    records, report = made_up_run()
    fig = draw_loss(records, report)
    for domain in THREE:
        ours, base = report["bits_per_byte"][domain], report["baseline_bits_per_byte"][domain]
        assert f"{domain} {ours:.2f} against {base:.2f}" in fig.alt
    assert "prose_and_code" not in fig.alt


@pytest.mark.parametrize(
    ("held_out", "baseline"),
    [
        ((1.5, 1.2, 9.0), (2.0, 2.0, 1.0)),
        ((2.5, 3.0, 0.1), (2.0, 2.0, 1.0)),
        ((2.2, 1.0, 1.0), (2.0, 2.0, 1.0)),
        ((1.0, 2.6, 1.0), (2.0, 2.0, 1.0)),
        ((2.0, 2.0, 1.0), (2.0, 2.0, 1.0)),
    ],
    ids=["both below", "both above", "prose above, code below", "prose below, code above", "equal"],
)
def test_the_title_of_the_loss_is_true_of_prose_and_of_code(held_out, baseline):
    numbers = [dict(zip(THREE, values, strict=True)) for values in (held_out, baseline)]
    title = draw_loss(*made_up_run(30, THREE, *numbers)).axes[0].get_title(loc="left")
    claim = re.search(r"at least (\d+)% (below|above) a 5-gram", title)
    if claim:
        share, sign = int(claim[1]) / 100, {"below": 1, "above": -1}[claim[2]]
        for ours, base in zip(held_out[:2], baseline[:2], strict=True):
            assert sign * (1 - ours / base) >= share - 0.005, title


def test_the_line_is_a_running_mean_of_the_training_loss():
    records, report = made_up_run(steps=240)
    rng = np.random.default_rng(1)
    for record in records:
        record["bits_per_byte"] = {d: rng.random() for d in THREE if rng.random() < 0.5}
    line = draw_loss(records, report).axes[0].lines[0]
    points = [(r["step"], r["bits_per_byte"]["prose"]) for r in records if "prose" in r["bits_per_byte"]]
    half = max(1, len(points) // 60)
    means = [np.mean([y for _, y in points[max(0, i - half) : i + half + 1]]) for i in range(len(points))]
    np.testing.assert_allclose(line.get_ydata(), means)
    np.testing.assert_allclose(line.get_xdata(), [(step + 1) * 2048 / 1e6 for step, _ in points])


def test_a_domain_that_a_short_run_never_reached_is_no_obstacle():
    records, report = made_up_run(steps=2)
    for record in records:
        del record["bits_per_byte"]["arithmetic"]
    assert "arithmetic 2.05" in draw_loss(records, report).alt


# ---------------------------------------------------------------------------------------------------
# The experts


@pytest.mark.parametrize(
    ("steps", "layers", "experts"), [(60, 4, 32), (640, 4, 32), (60, 8, 8), (60, 1, 8), (3, 4, 32)]
)  # fmt: skip
def test_no_text_of_the_expert_picture_hides_another(steps, layers, experts):
    records, _ = made_up_run(steps, layers=layers, experts=experts)
    assert_legible(draw_expert_load(records, names_of(layers)))


def test_layers_of_equal_violation_keep_their_labels_apart():
    records, _ = made_up_run()
    for record in records:
        record["max_violation"] = [0.5] * 4
    assert_legible(draw_expert_load(records, names_of(4)))


@pytest.mark.parametrize(
    "draw", [draw_loss, lambda records, _: draw_expert_load(records, names_of(4))], ids=["loss", "experts"]
)
def test_a_run_of_one_step_is_drawn_without_a_warning(draw):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_legible(draw(*made_up_run(steps=1)))


def test_the_expert_picture_says_its_numbers():
    records, _ = made_up_run(steps=100)
    violations = np.array([record["max_violation"] for record in records])
    first, last = violations[:20].mean(), violations[-20:].mean()
    fig = draw_expert_load(records, names_of(4))
    assert f"4 MoE layers: {first:.2f} in the first 20 steps, {last:.2f} in the last 20" in fig.alt
    assert "32 experts of layer 2" in fig.alt
    assert f"from {1 + first:.1f} times the average load to {1 + last:.1f} times" in fig.axes[0].get_title(loc="left")
    assert [text.get_text() for text in fig.axes[0].texts] == names_of(4)


def test_the_heat_map_is_the_load_over_the_average():
    records, _ = made_up_run(steps=50)
    (image,) = (image for axes in draw_expert_load(records, names_of(4)).axes[:2] for image in axes.images)
    expected = [[load / np.mean(r["load"][0]) for load in r["load"][0]] for r in records]
    np.testing.assert_allclose(image.get_array(), np.array(expected).T)


@pytest.mark.parametrize("preset", ["tiny", "mini", "mini-dense"])
def test_every_gate_has_a_name(preset):
    config = ModelConfig.preset(preset)
    names = moe_layer_names(config)
    assert len(names) == len(DeepSeek(config).gates)
    assert names == [f"layer {i + 1}" for i in range(config.num_hidden_layers) if config.is_moe_layer(i)] + (
        ["MTP"] if names else []
    )


@examples(100)
@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(-10, 10), min_size=1, max_size=6),
    st.floats(0.01, 2),
)
def test_spread_labels_keep_their_distance_order_and_middle(heights, gap):
    placed = spread(heights, gap, lowest=-math.inf)
    order = sorted(heights, key=heights.get)
    assert all(placed[upper] - placed[lower] >= gap - 1e-9 for lower, upper in itertools.pairwise(order))
    assert sum(placed.values()) == pytest.approx(sum(heights.values()), abs=1e-6)
    if all(heights[b] - heights[a] >= gap for a, b in itertools.pairwise(order)):
        assert placed == pytest.approx(heights)


def made_up_curve(name: str, values, exponent: float) -> dict:
    points = [
        {
            "value": value,
            "time": {"median_ms": 40 * 1.1 * value**exponent},
            "predicted_ms": 40 * value**exponent,
            "bytes": 2e7 * value,
            "predicted_bytes": 2e7 * value,
        }
        for value in values
    ]
    return {"curve": name, "threads": 1, "anchor": values[1], "points": points}


@pytest.mark.parametrize("exponent", [0.0, 0.4, 1.0, 1.5])
def test_growth_says_by_how_much_each_curve_grew_and_should_have(exponent):
    values = {"experts": (8, 16, 256), "context": (256, 512, 4096), "batch": (1, 2, 32), "layers": (2, 4, 16)}
    fig = draw_growth([made_up_curve(name, points, exponent) for name, points in values.items()])
    for name, points in values.items():
        grown = f"{(points[-1] / points[0]) ** exponent:.1f}"
        assert f"{name} from {points[0]} to {points[-1]}: {grown} times the time, predicted {grown}" in fig.alt
    assert_legible(fig)


# ---------------------------------------------------------------------------------------------------
# The map of the book


@pytest.mark.parametrize("chapter", [None, *LIT])
def test_no_text_of_the_architecture_hides_another(chapter):
    assert_legible(draw_architecture(chapter))


def test_the_architecture_says_what_is_lit():
    assert draw_architecture(3).alt.endswith("Lit: attention, latents.")
    assert draw_architecture().alt.endswith("Lit: everything.")
    with pytest.raises(ValueError, match="no chapter 17"):
        draw_architecture(17)


def test_every_chapter_lights_something_that_is_drawn_and_another_picture():
    drawn = set().union(*LIT.values())
    assert drawn == EVERYTHING | LATER.keys()
    assert set(LATER.values()) == set(range(7, 17))
    pictures = {draw_architecture(chapter).png(0.5) for chapter in LIT}
    assert len(pictures) == len(LIT)


# ---------------------------------------------------------------------------------------------------
# The bill

RELEASED = list(REPORTS)


@pytest.mark.parametrize("name", [*RELEASED, "mini", "mini-dense"])
@pytest.mark.parametrize("dollars", [None, 2.0])
def test_no_text_of_the_parameters_hides_another(name, dollars):
    assert_legible(draw_parameters(ModelConfig.preset(name), dollars))


@examples(20)
@given(
    st.integers(4, 100), st.sampled_from([8, 16, 64, 256, 1024]), st.integers(1, 8), st.integers(2, 32),
    st.floats(0.5, 8),
)  # fmt: skip
def test_wherever_the_sliders_stand_the_bill_is_legible(layers, experts, chosen, width, dollars):
    v3 = ModelConfig.preset("deepseek-v3")
    config = replace(
        v3, num_hidden_layers=layers, n_routed_experts=experts, num_experts_per_tok=chosen, hidden_size=512 * width,
        n_group=1, topk_group=1,
    )  # fmt: skip
    assert_legible(draw_parameters(config, dollars))


@pytest.mark.parametrize("name", RELEASED)
def test_the_areas_are_the_parameters(name):
    config = ModelConfig.preset(name)
    count = count_parameters(config)
    (ax,) = draw_parameters(config).axes
    areas = sorted(patch.get_width() * patch.get_height() for patch in ax.patches)
    small = count.total - count.routed_experts
    parts = sorted(number for field, number in count.breakdown.items() if number and field != "routed_experts")
    np.testing.assert_allclose(areas, [part / count.total for part in parts])
    assert sum(areas) == pytest.approx(small / count.total)
    if config.uses_moe:
        cells = ax.images[0].get_array()
        layers = config.num_hidden_layers - config.first_k_dense_replace
        assert cells.shape[:2] == (layers, config.n_routed_experts)
        lit = (cells == np.array(to_rgb(PARTS["routed"]))).all(axis=-1)
        assert (lit.sum(axis=1) == config.num_experts_per_tok).all()


def test_the_parameters_are_said():
    alt = draw_parameters(ModelConfig.preset("deepseek-v3"), 2.0).alt
    assert "671,026,419,200 parameters, 36,625,618,432 used per token (5.5%)" in alt
    assert "Cache 70,272 bytes per token. Pre-training like V3: 2,664,000 GPU-hours, $5,328,000" in alt


@pytest.mark.parametrize(
    "fig",
    [
        draw_hours(REPORTS["deepseek-v3"]), draw_models(RELEASED), draw_conventions(RELEASED[2:]),
        draw_claims(all_claims(), ARTICLES),
    ],
    ids=["hours", "models", "conventions", "claims"],
)  # fmt: skip
def test_no_text_of_the_other_pictures_of_the_bill_hides_another(fig):
    assert_legible(fig)


def test_the_hours_add_up():
    fig = draw_hours(REPORTS["deepseek-v3"])
    bars = [(bar.get_x(), bar.get_width()) for bar in fig.axes[0].patches]
    assert bars == [(0, 2_664_000), (2_664_000, 119_000), (2_783_000, 5_000), (0, 2_788_000)]
    assert fig.alt.endswith("together 2,788,000, at $2.00 $5,576,000")


def test_which_convention_fits_which_report():
    assert draw_conventions(RELEASED[2:]).alt == (
        "MoE 16B prints 2.8B: body, head and embedding; V2-Lite prints 2.4B: none of the three; "
        "V2 prints 21B: body and head or body, head and embedding; V3 prints 37B: body and head"
    )


@pytest.mark.parametrize(
    ("text", "low", "high"), [("37B", 36.5e9, 37.5e9), ("2.4B", 2.35e9, 2.45e9), ("6.9B", 6.85e9, 6.95e9)]
)
def test_what_is_printed_stands_for_a_range(text, low, high):
    assert printed(text) == pytest.approx((low, high))


# ---------------------------------------------------------------------------------------------------
# The style


@pytest.mark.parametrize("color", [*PARTS.values(), *VERDICTS.values(), PALE, "#FFFFFF", "#000000"])
def test_text_stands_out_from_every_colour_of_the_palette(color):
    assert contrast(readable_on(color), color) >= 4.5
    assert contrast(readable_on(color), color) == max(contrast(ink, color) for ink in ("black", "white"))


@pytest.mark.parametrize("color", [INK, MUTED])
def test_text_stands_out_from_the_page(color):
    assert contrast(color, "white") >= 4.5


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio, from 1 to 21."""

    def luminance(color: str) -> float:
        low = np.array(to_rgb(color))
        return float(np.where(low <= 0.04045, low / 12.92, ((low + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_a_picture_is_the_same_file_each_time():
    assert draw_hours(REPORTS["deepseek-v3"]).png() == draw_hours(REPORTS["deepseek-v3"]).png()


# ---------------------------------------------------------------------------------------------------
# The baseline


@pytest.mark.parametrize("width", [8, 64, 128])
def test_no_text_of_the_rotation_hides_another(width):
    config = ModelConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, intermediate_size=8, num_attention_heads=1, head_dim=width
    )
    assert_legible(draw_rotation(rope_frequencies(config)))


def test_attention_shows_every_weight_that_is_not_zero():
    weights = np.tril(np.full((4, 4), 0.25))
    fig = draw_attention(weights, ["a", "b", "c", "d"], "Four words")
    assert_legible(fig)
    assert sum(text.get_text() == "0.25" for text in fig.axes[0].texts) == 10
    assert fig.alt.startswith("a: 0.25 0.00 0.00 0.00; b: 0.25 0.25")


def test_the_caches_are_those_of_shared_and_unshared_keys():
    fig = draw_caches(["deepseek-llm-7b", "deepseek-llm-67b", "deepseek-moe-16b"])
    assert_legible(fig)
    assert "LLM 67B: every head its own 380.0 GiB, as released 47.5 GiB, one for all heads 5.9 GiB" in fig.alt


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16])
def test_the_wall_is_legible_and_where_the_bytes_are_equal(batch):
    fig = draw_wall(batch=batch)
    assert_legible(fig)
    config = ModelConfig.preset("deepseek-llm-7b")
    meet = 2 * count_parameters(config).total / (batch * kv_cache_bytes(config))
    assert f"cache as large at {meet:,.0f} tokens" in fig.alt


@pytest.mark.parametrize("end", [0.2, 2.0, 3.7])
def test_no_text_of_the_live_loss_hides_another(end):
    assert_legible(draw_live_loss(range(1, 101), np.linspace(4, end, 100), before=3.9))
