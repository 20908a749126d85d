"""All pictures: what each must be whatever its data, and what it says of them. test_drawn.py looks at what is drawn."""

import itertools
import math
import re
from collections import Counter
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st
from legibility import assert_legible, contrast, contrasts
from matplotlib.figure import Figure
from pictures import ARGUMENTS, NAMES, PRESETS, V3, arguments, picture, run, title

from minids.book import plots
from minids.book.claims import all_claims
from minids.book.plots.helpers import spread
from minids.book.plots.style import INK, MUTED, PALE, PARTS, VERDICTS, readable_on
from minids.cost.published import REPORTS

pytestmark = pytest.mark.xdist_group("pictures")  # in one process, so that each is drawn once


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NAMES)
def test_no_text_hides_another_or_leaves_the_canvas(name):
    assert_legible(picture(name))


OWN_RC = {
    "text.usetex": True, "font.size": 30, "axes.grid": True, "savefig.bbox": "tight",
    "axes.prop_cycle": "cycler('color', 'r')",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES[::8])
def test_a_reader_s_own_settings_of_matplotlib_change_no_picture(name):
    expected = picture(name).png()
    with matplotlib.rc_context(OWN_RC):
        assert picture.__wrapped__(name).png() == expected


@examples(20)
@given(
    st.integers(4, 100), st.sampled_from([8, 16, 64, 256, 1024]), st.integers(1, 8), st.integers(2, 32),
    st.floats(0.5, 8),
)  # fmt: skip
def test_wherever_the_sliders_stand_the_bill_is_legible(layers, experts, chosen, width, dollars):
    config = replace(
        V3, num_hidden_layers=layers, n_routed_experts=experts, num_experts_per_tok=chosen, hidden_size=512 * width,
        n_group=1, topk_group=1,
    )  # fmt: skip
    assert_legible(plots.draw_parameters(config, dollars))


@examples(20)
@given(st.lists(st.floats(0.6, 15_000), min_size=2, max_size=2))
def test_wherever_the_sliders_stand_the_roofline_is_legible(intensities):
    assert_legible(plots.draw_roofline(dict(zip(("LLM 7B, decoding", "LLM 67B, decoding"), intensities, strict=True))))


@examples(8)
@given(st.tuples(*[st.floats(0.2, 5)] * 3), st.tuples(*[st.floats(0.5, 4)] * 3), st.integers(0, 2), st.booleans())
def test_the_dashboard_stays_legible_whatever_the_numbers(held_out, baseline, layers, mtp):
    assert_legible(plots.draw_dashboard(*run(30, held_out, baseline, layers=layers, mtp=mtp)))


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


@pytest.mark.parametrize("draw", ARGUMENTS)
def test_every_text_stands_out_from_its_ground_in_grey_too(draw):
    """Least where it has the colour of a line; ink and grey keep the contrast that WCAG asks of text."""
    for text, ratio in contrasts(picture(next(name for name in NAMES if name.startswith(f"{draw}: ")))):
        if len(text.get_text()) > 1:  # not the squares and dots of a key
            plain = text.get_color() in (INK, MUTED, "black", "white")
            assert ratio >= (4.5 if plain else 2.2), (text.get_text(), text.get_color())


@pytest.mark.parametrize("color", [*PARTS.values(), *VERDICTS.values(), PALE, "#FFFFFF", "#000000"])
def test_text_on_a_colour_of_the_palette_is_in_the_better_of_black_and_white(color):
    assert contrast(readable_on(color), color) == max(contrast(ink, color) for ink in ("black", "white")) >= 4.5


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


# ---------------------------------------------------------------------------------------------------
# What they say


@pytest.mark.parametrize("name", NAMES)
def test_the_text_fits_a_line_of_markdown_and_the_title_states_a_finding_in_numbers(name):
    """In numbers, but for one that denies something, those that the caller gives, and two kinds without a title."""
    alt, finding = picture(name).alt, title(picture(name))
    assert len(alt) > 40
    assert not re.search(r"\n|\bnan\b|\binf\b|None", alt + finding)
    if not name.startswith(("conventions", "attention: ", "score_parts", "architecture", "growth")):
        assert re.search(r"\d", finding)
        assert len(finding.split()) >= 6


CLOCK = 128 * 4 ** (math.log(1.1) / math.log(2.2))  # from 1.1 at 128 to 0.5 at 512, straight on logarithmic scales
SAID = [
    ("architecture: 3", "Lit: attention, latents."),
    ("parameters: deepseek-v3, 2.0", "A token uses 36.6B of 671B parameters: 5.5%"),
    ("parameters: deepseek-v3, 2.0", "671,026,419,200 parameters, 36,625,618,432 used per token (5.5%)"),
    ("parameters: deepseek-v3, 2.0", "70,272 bytes per token. Pre-training like V3: 2,664,000 GPU-hours, $5,328,000"),
    ("hours: V3", f"{2_664_000 / 2_788_000:.1%} of the GPU-hours are pre-training"),
    ("hours: V3", "together 2,788,000, at $2.00 $5,576,000"),
    ("conventions: MoE", "MoE 16B prints 2.8B: body, head and embedding; V2-Lite prints 2.4B: none of the three; V2 "
     "prints 21B: body and head or body, head and embedding; V3 prints 37B: body and head"),
    ("attention: even", "a: 0.25 0.00 0.00 0.00; b: 0.25 0.25"),
    ("rope: 4", "positions 7 and 5: q by 127° and k by 91°, 77° between them, q · k = 0.23"),
    ("rope: 4", f"pair 63 rotates by {10_000 ** (-126 / 128):.4f} radians per position"),
    ("roofline: two", f"full cache: at most {3.35 / 989.4:.1%} of the arithmetic of an H800 can be used"),
    ("roofline: two", "absorbed has 241.8 operations per byte and can reach 810.0 TFLOP/s"),
    ("roofline: three", "7B, prefill has 4,200.0 operations per byte and can reach 989.4 TFLOP/s"),
    ("caches: dense", "LLM 67B: MHA 380.0 GiB; GQA 47.5 GiB, as released; MQA 5.9 GiB"),
    ("caches: dense", "GQA divides LLM 67B’s cache by 8; at 128K tokens it still takes 47.5 GiB"),
    ("live_loss: 2.0", f"save {3.9 - np.linspace(4, 2, 100)[-10:].mean():.1f} bits per byte"),
    ("absorption: deepseek-v3, 1", "One new token over 128K: expanding multiplies 121 times as much as absorbing"),
    ("absorption: deepseek-v3, 128", "absorbing is cheaper beyond 512 tokens of context"),
    ("absorption: deepseek-v3, 128", "absorbing costs less than expanding beyond 512 tokens"),
    ("absorption: deepseek-v3, 171", "expanding is always cheaper than absorbing"),
    ("crossing: 1", f"expanding pays from 146 new tokens on; measured, from {CLOCK:.0f}"),
    ("crossing: 3", "measured, it never did"),
    ("crossing: 1", "with 146 new tokens in one step, with 1 108.05 times"),
    ("decoding: (20, 500, 20)", "Absorbed ran 25 times as fast as expanded, on 11% of the full cache’s bytes"),
    ("decoding: (20, 500, 20)", "full cache 20,480 bytes, absorbed 2,304 bytes"),
    ("latent_flow: v3, expanded", "576 numbers are cached; they expand to 40,960, of which 8,192 are copies"),
    ("latent_flow: v3, expanded", "c_kv (512) and k_rope (64), 576 together. They expand to 40,960"),
    ("latent_flow: v3, absorbed", "The queries become 73,728 wide"),
    ("latent_flow: v2-lite, expanded", "queries come directly from h"),
    ("brackets: 4", "Rotated keys need 4 absorbed queries for 4 words, MLA needs one"),
    ("kinds: all", "With 5 cached numbers a token, MLA gives every head its own keys and values"),
    ("kinds: dense", "From 16 cached numbers a token to 4"),
    ("step: MLA, expanded, 4", "5 numbers cached a token, and 16 made of them again at every step"),
    ("step: MLA, expanded, 4", "20 read, 64 made and not kept, 288 multiplications"),
    ("attention_ablation: 1", "At 64 cached numbers MQA is ahead of MLA 48 + 16 and MLA 32 + 32 in every seed"),
    ("attention_ablation: 0", "No arm is ahead"),
    ("cache_kinds: released", "V3 (MLA): MHA 488.0, GQA 30.5, MQA 3.8, MLA 8.6"),
    ("cache_kinds: released", "At 128K tokens V2 caches 57 times less than with MHA"),
    ("cache_kinds: dense", "The cache of 128K tokens, with each kind of attention"),
    ("ablation: recorded", "4 of 13 changes beat the full model: MHA · GQA; at equal time dense · no MTP"),
    ("ablation: with a reader's", "4 of 13 changes beat"),
    ("ablation: with a reader's", "no MTP +0.003 (not separated)"),
    ("ablation: with a reader's", "eight heads, 1 run; eight heads, 2 runs"),
    ("ablation: one row", "1 of 1 changes beat the full model: MHA"),
    ("scaling: apart", "The mixture at 4 sizes: ahead at 4 (up to"), ("scaling: behind", "behind at 4 (up to"),
    ("scaling: mixed", "The mixture at 4 sizes: ahead at 2 (up to 0.10 bits), behind at 2 (up to 0.10 bits)"),
    ("score_parts: two", "layer 0 head 0: the rotated part makes "),
]  # fmt: skip


@pytest.mark.parametrize(("name", "words"), SAID, ids=[f"{name} {words[:30]}" for name, words in SAID])
def test_title_and_text_say(name, words):
    assert words in f"{title(picture(name))}\n{picture(name).alt}"


@pytest.mark.parametrize("power", ARGUMENTS["growth"])
def test_growth_says_by_how_much_each_curve_grew_and_should_have(power):
    fig = picture(f"growth: {power}")
    for i, curve in enumerate(arguments(f"growth: {power}")[0]):
        first, *_, last = curve["points"]
        time = last["time"]["median_ms"] / first["time"]["median_ms"]
        counted, size, size_counted = (last[k] / first[k] for k in ("predicted_ms", "bytes", "predicted_bytes"))
        words = f"{curve['curve']} from {first['value']} to {last['value']}: {time:.1f} times the time"
        assert f"{words}, predicted {counted:.1f}" in fig.alt
        for ax, grown in zip(fig.axes[2 * i : 2 * i + 2], ((time, counted), (size, size_counted)), strict=True):
            said = [f"× {times:.1f}" if times < 10 else f"× {times:.0f}" for times in grown]
            assert ax.get_title(loc="left") == ", counted ".join(said)


def test_the_claims_are_counted_and_each_is_a_square():
    computed, quoted = ([c.verdict for c in all_claims() if c.kind == kind] for kind in ("computed", "quoted"))
    fig, verdicts = picture("claims: all"), Counter(computed)
    said = [int(number) for number in re.findall(r"\d+", title(fig))]
    assert said == [len(computed), *(verdicts[verdict] for verdict in ("right", "imprecise", "wrong"))]
    filled = Counter(patch.get_facecolor()[:3] != (1, 1, 1) for patch in fig.axes[0].patches)
    assert filled == {True: len(computed), False: len(quoted)}
    assert any(f"{len(quoted)} about prices and scores" in text.get_text() for text in fig.axes[0].texts)


@pytest.mark.parametrize(
    ("draw", "data", "why"),
    [
        ("architecture", (17,), "no chapter 17"),
        ("hours", (REPORTS["deepseek-llm-7b"],), "LLM 7B does not give"),
        ("absorption", (V3, 2**16 + 1), "new_tokens=65537 is not possible: it must be at most 65536"),
        ("latent_flow", (PRESETS["deepseek-llm-7b"],), "no latents"),
        ("step", ("MHA", 7), "token=7 is not possible: it must be 1 to 6"),
        ("step", ("MLA",), "kind='MLA' is not possible: it must be MHA or "),
        ("brackets", (1,), "token=1 is not possible: it must be 2 to 6"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, data, why):
    with pytest.raises(ValueError, match=why):
        getattr(plots, f"draw_{draw}")(*data)
