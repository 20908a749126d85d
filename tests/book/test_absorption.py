"""The pictures of three ways to attend: legible, and their crossing where both cost the same."""

import pytest
from legibility import assert_legible

from minids.book.plots import draw_absorption, draw_crossing, draw_decoding
from minids.book.plots.c03_absorption import _short
from minids.cost.accounting import mla_cached_numbers, mla_multiplications
from minids.model.config import ModelConfig

V3, LITE = ModelConfig.preset("deepseek-v3"), ModelConfig.preset("deepseek-v2-lite")


@pytest.mark.parametrize("new_tokens", [1, 16, 64, 128, 160, 170, 171, 256, 1024])
@pytest.mark.parametrize("name", ["deepseek-v3", "mini"])
def test_the_costs_are_legible_with_any_number_of_new_tokens(name, new_tokens):
    assert_legible(draw_absorption(ModelConfig.preset(name), new_tokens))


def test_the_costs_say_where_the_lines_cross():
    assert "beyond 512 tokens" in draw_absorption(V3, 128).alt
    assert "never costs less" in draw_absorption(V3, 171).alt
    (dot,) = [line for line in draw_absorption(V3, 128).axes[0].lines if line.get_marker() == "o"]
    assert dot.get_xdata()[0] == pytest.approx(512)
    count = mla_multiplications(V3, 512, 128)
    assert dot.get_ydata()[0] == pytest.approx(count["absorbed"] / 1e9) == pytest.approx(count["expanded"] / 1e9)


def test_the_titles_say_what_is_saved():
    def title(fig):
        return max((text for text in fig.texts), key=lambda text: text.get_fontsize()).get_text()

    assert title(draw_absorption(V3)) == "One new token over 128K: expanding multiplies 121 times as much as absorbing"
    assert title(draw_absorption(V3, 128)).endswith("absorbing is cheaper beyond 512 tokens of context")
    assert title(draw_absorption(V3, 200)).endswith("expanding is always cheaper than absorbing")
    ratios = {64: 4.0, 256: 1 / 4}
    crossing = draw_crossing(LITE, 1024, ratios)
    assert title(crossing) == "By count, expanding pays from 146 new tokens on; by the clock from about 128"
    (line,) = [line for line in crossing.axes[0].lines if line.get_linestyle() == "--"]
    assert line.get_xdata()[0] == pytest.approx(1 / (1 / 1024 + 768 / (512 * 256)))
    assert title(draw_crossing(LITE, 1024, {1: 3.0, 64: 2.0})).endswith("the clock does not see it")
    times = {"full cache": [1, 9], "expanded": [8, 800], "absorbed": [1, 20]}
    decoding = draw_decoding([256, 8192], times, {"full cache": 100, "absorbed": 11})
    assert title(decoding) == "Absorbed runs 40 times as fast as expanded, on 11% of the full cache’s bytes"


def test_more_new_tokens_than_the_picture_has_room_for_are_refused():
    with pytest.raises(ValueError, match="new_tokens=65537 is not possible: it must be at most 65536"):
        draw_absorption(V3, 2**16 + 1)


@pytest.mark.parametrize(
    ("billions", "text"),
    [(5.39, "5.39G"), (0.9996, "1G"), (999.6, "1T"), (0.0123, "12.3M"), (123.4, "123G"), (4e-6, "4k"), (5e-8, "50")],
)
def test_numbers_have_three_digits_and_the_unit_that_fits(billions, text):
    assert _short(billions) == text


@pytest.mark.parametrize("faster", [0.3, 1, 3])
def test_the_crossing_is_legible_and_says_the_count(faster):
    ratios = {1: 100 * faster, 16: 7 * faster, 64: 2 * faster, 128: 1.1 * faster, 512: 0.5 * faster}
    fig = draw_crossing(LITE, 1024, ratios)
    assert_legible(fig)
    assert "with 146 new tokens" in fig.alt
    assert "with 1 108.05 times" in fig.alt


@pytest.mark.parametrize("end", [(20, 500, 8), (20, 500, 20), (8, 60, 20), (8, 9, 10)])
def test_the_times_of_decoding_are_legible(end):
    contexts = [256, 512, 1024, 2048, 4096, 8192]
    ways = ("full cache", "expanded", "absorbed")
    times = {way: [last * c / 8192 for c in contexts] for way, last in zip(ways, end, strict=True)}
    kept = {way: 4 * mla_cached_numbers(LITE)[way] for way in ("full cache", "absorbed")}
    fig = draw_decoding(contexts, times, kept)
    assert_legible(fig)
    assert fig.alt == "Kept of a token in one layer: full cache 20,480 bytes, absorbed 2,304 bytes"
