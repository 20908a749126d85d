"""What stands in the pictures, line by line and patch by patch, against the data: areas, places, colours and scales."""

import itertools
import re

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation
from pictures import PRESETS, RELEASED, V3, arguments, picture, title

from minids.book import plots
from minids.book.plots.architecture import EVERYTHING, LATER, LIT
from minids.book.plots.style import PARTS
from minids.book.toy import KINDS, TOYS, step_of, toy_input, toy_layer, toy_rotation
from minids.cost.attention import mla_multiplications
from minids.cost.cache import kv_cache_bytes, kv_cache_elements
from minids.cost.parameters import count_parameters
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek

pytestmark = pytest.mark.xdist_group("pictures")  # in one process, so that each is drawn once


def points(name: str) -> list:
    """The first picture's first axes' markers."""
    return [line for line in picture(name).axes[0].lines if line.get_marker() == "o"]


def test_every_chapter_lights_something_that_is_drawn_in_a_picture_of_its_own_and_nothing_moves():
    assert set().union(*LIT.values()) == EVERYTHING | LATER.keys()
    assert set(LATER.values()) == set(range(7, 17))
    drawn = [plots.draw_architecture(chapter).axes[0] for chapter in LIT]
    colors = [[patch.get_facecolor() for patch in ax.patches] for ax in drawn]
    assert all(one != other for one, other in itertools.combinations(colors, 2))
    places = [[(text.get_text(), text.get_position()) for text in ax.texts] for ax in drawn]
    assert all(of_chapter == places[0] for of_chapter in places)


# ---------------------------------------------------------------------------------------------------
# The bill


@pytest.mark.parametrize("name", RELEASED)
def test_the_areas_are_the_parameters(name):
    config = PRESETS[name]
    count = count_parameters(config)
    (ax,) = picture(f"parameters: {name}, None").axes
    areas = sorted(patch.get_width() * patch.get_height() for patch in ax.patches)
    parts = sorted(number for field, number in count.breakdown.items() if number and field != "routed_experts")
    np.testing.assert_allclose(areas, [part / count.total for part in parts])
    if config.uses_moe:
        cells = ax.images[0].get_array()
        layers = config.num_hidden_layers - config.first_k_dense_replace
        assert cells.shape[:2] == (layers, config.n_routed_experts)
        lit = (cells == np.array(to_rgb(PARTS["routed"]))).all(axis=-1)
        assert (lit.sum(axis=1) == config.num_experts_per_tok).all()


def test_the_hours_add_up():
    bars = [(bar.get_x(), bar.get_width()) for bar in picture("hours: V3").axes[0].patches]
    assert bars == [(0, 2_664_000), (2_664_000, 119_000), (2_783_000, 5_000), (0, 2_788_000)]


# ---------------------------------------------------------------------------------------------------
# The baseline


def arrows(name: str) -> list[np.ndarray]:
    """The ends of query and key in each dial of the rotation, as complex numbers."""
    dials = picture(name).axes[:3]
    tips = [[note.xy for note in ax.texts if isinstance(note, Annotation)] for ax in dials]
    return [np.array([complex(*tip) for tip in pair]) for pair in tips]


@pytest.mark.parametrize("shift", [0, 4, 60])
def test_query_and_key_rotate_by_their_positions_and_the_angle_between_them_stays(shift):
    projected, at_3_and_1, shifted = arrows(f"rope: {shift}")
    theta = 10_000 ** (-2 * 8 / 128)
    np.testing.assert_allclose(at_3_and_1, projected * np.exp(1j * theta * np.array([3, 1])), atol=1e-5)
    np.testing.assert_allclose(shifted, projected * np.exp(1j * theta * np.array([3 + shift, 1 + shift])), atol=1e-4)
    between = [np.angle(pair[0] / pair[1]) for pair in (projected, at_3_and_1, shifted)]
    assert between[1] == pytest.approx(between[2], abs=1e-4) != pytest.approx(between[0], abs=0.1)


@pytest.mark.parametrize("name", ["two", "three", "fast"])
def test_the_points_lie_on_the_roof_which_is_the_lower_of_bandwidth_times_intensity_and_peak(name):
    roof = picture(f"roofline: {name}").axes[0].lines[0]
    dots = {dot.get_xdata()[0]: dot.get_ydata()[0] for dot in points(f"roofline: {name}")}
    assert dots == {x: pytest.approx(min(3.35 * x, 989.4)) for x in arguments(f"roofline: {name}")[0].values()}
    assert list(roof.get_ydata()) == pytest.approx([min(3.35 * x, 989.4) for x in roof.get_xdata()])
    assert roof.get_xdata()[1] == pytest.approx(989.4 / 3.35)


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16])
def test_the_wall_is_where_the_bytes_are_equal(batch):
    config = PRESETS["deepseek-llm-7b"]
    meet = 2 * count_parameters(config).total / (batch * kv_cache_bytes(config))
    assert points(f"wall: {batch}")[0].get_xdata()[0] == pytest.approx(meet)
    assert f"from {meet:,.0f} tokens on" in title(picture(f"wall: {batch}"))
    assert f"cache as large at {meet:,.0f} tokens" in picture(f"wall: {batch}").alt


# ---------------------------------------------------------------------------------------------------
# Latents


@pytest.mark.parametrize("times", ["0.05", "1", "20"])
def test_the_cut_ranks_say_what_they_cost_and_singular_values_are_drawn_over_the_largest(times):
    (data,), fig = arguments(f"low_rank: {times}"), picture(f"low_rank: {times}")
    measured = [row["measured"] for row in data["runs"] if row["arm"] == "MHA"]
    for rank in ("16", "64", "192"):
        cost = sum(m["bits_per_byte"][rank] - m["bits_per_byte"]["as trained"] for m in measured) / 3
        assert f" {rank}: {cost:.3f}" in fig.alt
        assert rank != "64" or f"rank 64 of 192 cost a trained model {cost:.3f}" in title(fig)
    values = np.array(measured[0]["singular_values"])[:, :192]
    np.testing.assert_allclose([line.get_ydata() for line in fig.axes[0].lines], values / values[:, :1])


def test_arms_of_equal_cache_stand_together_with_a_dot_for_each_seed_and_a_bar_at_their_mean():
    (data,), fig = arguments("attention_ablation: 20"), picture("attention_ablation: 20")
    labels = [tick.get_text().replace("\n", " ") for tick in fig.axes[0].get_xticklabels()]
    assert labels == ["MHA", "GQA", "MLA 112 + 16", "MLA 96 + 32", "MQA", "MLA 48 + 16", "MLA 32 + 32"]
    cached = dict(zip(labels, (384, 128, 128, 128, 64, 64, 64), strict=True))
    dots = [line.get_ydata() for line in points("attention_ablation: 20")]
    bars = [line.get_ydata()[0] for line in fig.axes[0].lines if line.get_linewidth() == 3]
    means, ranges = [], []
    for label, seeds, bar in zip(labels, dots, bars, strict=True):
        scores = [r["report"]["bits_per_byte"]["prose_and_code"] for r in data["runs"] if r["arm"] == label]
        low, mean, high = min(scores), sum(scores) / 3, max(scores)
        assert [*seeds, bar] == pytest.approx([*scores, mean])
        assert f"{label}: {cached[label]} cached, {mean:.3f} ({low:.3f} to {high:.3f})" in fig.alt
        means.append(mean)
        ranges.append(high / low - 1)
    apart = max(means) / min(means) - 1
    note = f"all arms lie within {apart:.1%}, seeds of one arm within {max(ranges):.1%}"
    assert any(note in text.get_text() for text in fig.texts)


def test_times_are_drawn_as_their_median_within_their_range():
    _, milliseconds, _ = arguments("decoding: (20, 500, 20)")
    ax = picture("decoding: (20, 500, 20)").axes[0]
    for line, band, times in zip(ax.lines, ax.collections, milliseconds.values(), strict=True):
        np.testing.assert_allclose(line.get_ydata(), np.median(times, axis=1))
        heights = band.get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((np.min(times), np.max(times)))


def test_expanding_and_absorbing_cross_where_both_multiply_as_much():
    (dot,) = points("absorption: deepseek-v3, 128")
    assert dot.get_xdata()[0] == pytest.approx(512)
    count = mla_multiplications(V3, 512, 128)
    assert dot.get_ydata()[0] * 1e9 == pytest.approx(count["absorbed"]) == pytest.approx(count["expanded"])
    (line,) = [line for line in picture("crossing: 1").axes[0].lines if line.get_linestyle() == "--"]
    assert line.get_xdata()[0] == pytest.approx(1 / (1 / 1024 + 768 / (512 * 256)))


def bars_of_flow(form: str) -> list[Rectangle]:
    patches = picture(f"latent_flow: v3, {form}").axes[0].patches
    return [patch for patch in patches if isinstance(patch, Rectangle) and patch.get_height() == 17]


def test_widths_of_the_flow_are_to_scale_and_both_forms_have_one_scale():
    expanded, absorbed = (np.array([bar.get_width() for bar in bars_of_flow(f)]) for f in ("expanded", "absorbed"))
    numbers = [7168, 1536, 16384, 8192, 512, 64, 16384, 16384, 8192, 16384, 7168]
    np.testing.assert_allclose(np.delete(expanded, [6, 7]) / expanded[0], np.array(numbers) / 7168)  # without the inset
    assert absorbed[0] == pytest.approx(expanded[0])
    assert max(absorbed) / absorbed[0] == pytest.approx(128 * 512 / 7168)


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_what_is_cached_is_outlined_in_dashes_around_its_two_parts(form):
    patches = picture(f"latent_flow: v3, {form}").axes[0].patches
    outlines = [p for p in patches if isinstance(p, Rectangle) and p.get_facecolor()[3] == 0]
    small, enlarged = bars_of_flow(form)[4:6], bars_of_flow(form)[6:8]
    for outline, (latent, rotated) in zip(outlines, (small, enlarged), strict=True):
        assert outline.get_linestyle() == "--" or outline.get_linestyle()[1]
        inside = latent.get_x(), rotated.get_x() + rotated.get_width()
        assert (outline.get_x(), outline.get_x() + outline.get_width()) == pytest.approx((inside[0] - 4, inside[1] + 4))
    times = [large.get_width() / bar.get_width() for large, bar in zip(enlarged, small, strict=True)]
    assert times == pytest.approx([33, 33])


@pytest.mark.parametrize("token", [1, 4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_of_a_step_give_the_output_of_the_layer(kind, token):
    step, name = step_of(kind, token), kind.partition(",")[0]
    layer, (*query, q), (*read, k) = toy_layer(name), step.query.values(), (step.expanded or step.cached).values()
    assert (
        step.per_token * token == kv_cache_elements(TOYS[name]) * token == sum(p.numel() for p in step.cached.values())
    )
    if name != "MLA":
        keys, values = (part.repeat_interleave(4 // part.shape[1], dim=1).transpose(0, 1) for part in (*read, k))
        scores = q[:, None] @ keys.mT
    else:  # a part that depends on the kind, and one over the shared rotated key
        first = (step.expanded or step.cached).get("k_nope", step.cached["c_kv"]).transpose(0, 1)
        scores = query[0][:, None] @ first.mT + q[:, None] @ step.cached["k_rope"].transpose(0, 1).mT
        values = step.expanded["v_made"].transpose(0, 1) if step.expanded else step.cached["c_kv"].transpose(0, 1)
    o = (scores / (2 + 2 * (name == "MLA")) ** 0.5).softmax(-1) @ values
    if kind == "MLA, absorbed":
        o = o @ layer.kv_b_proj.weight.unflatten(0, (4, -1))[:, 2:].mT
    expected = layer(toy_input()[None, :token], toy_rotation(token))[0, -1]
    torch.testing.assert_close(layer.o_proj(o.flatten()), expected)


def test_a_box_of_a_step_holds_one_number_and_later_words_have_none():
    texts = [text.get_text() for text in picture("step: MLA, absorbed, 4").axes[0].texts]
    numbers = [float(text) for text in texts if re.fullmatch(r"-?\d\.\d", text)]
    step = step_of("MLA, absorbed", 4)
    assert len(numbers) == 4 * 5 + 4 * 5
    drawn = torch.cat(
        [step.cached["c_kv"].flatten(), step.cached["k_rope"].flatten(), torch.cat([*step.query.values()], 1).flatten()]
    )
    np.testing.assert_allclose(sorted(numbers), sorted(round(n + 0.0, 1) for n in drawn.tolist()), atol=1e-6)


def test_the_open_bracket_is_the_absorbed_query_and_the_blocked_one_is_rotated():
    shown = [
        float(t.get_text()) for t in picture("brackets: 4").axes[0].texts if re.fullmatch(r"-?\d\.\d", t.get_text())
    ]
    *rotated, absorbed = np.array(shown).reshape(5, 3)
    np.testing.assert_allclose(absorbed, step_of("MLA, absorbed", 4).query["absorbed"][3], atol=0.051)
    np.testing.assert_allclose(rotated[-1], absorbed)  # 0 apart: no rotation
    assert len({tuple(row) for row in rotated}) == 4


def test_the_filled_dots_are_the_caches_of_the_models_as_released():
    dots = points("cache_kinds: released")
    filled = [dot.get_xdata()[0] for dot in dots if dot.get_markerfacecolor() == dot.get_markeredgecolor()]
    assert filled == [kv_cache_bytes(PRESETS[name]) * 2**17 / 2**30 for name in RELEASED]


def test_score_parts_are_drawn_less_the_mean_of_their_rows_and_the_weights_are_the_softmax_of_the_sum():
    content, rotated, *_ = arguments("score_parts: two")
    drawn = [np.ma.filled(ax.images[0].get_array(), 0) for ax in picture("score_parts: two").axes]
    for part, image in zip((content, rotated), drawn[:2], strict=True):
        row = part[0][3, :4]
        np.testing.assert_allclose(image[3, :4], row - row.mean())
    for t in range(5):
        exponentials = np.exp((content[1] + rotated[1])[t, : t + 1])
        np.testing.assert_allclose(drawn[5][t, : t + 1], exponentials / exponentials.sum())
        assert not drawn[5][t, t + 1 :].any()


# ---------------------------------------------------------------------------------------------------
# A training run


@pytest.mark.parametrize("preset", ["tiny", "mini", "mini-dense"])
def test_every_gate_has_a_name(preset):
    config = ModelConfig.preset(preset)
    names = config.moe_layer_names()
    assert len(names) == len(DeepSeek(config).gates)
    body = [f"layer {i + 1}" for i in range(config.num_hidden_layers) if config.is_moe_layer(i)]
    assert names == body + ["MTP"] * bool(body)
