"""The diagrams of chapter 7's products and sums show what the library does: its tiles, formats and registers."""

import math
import re
from dataclasses import replace

import pytest
from helpers_training import small_model
from legibility import assert_legible
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from pictures import title

from minids.book.plots import c07_accumulate, c07_products
from minids.book.plots.c07_accumulate import FACTORS, LOST, draw_accumulation_error, draw_cut_products, next_sum
from minids.book.plots.c07_products import (
    ACROSS,
    CELL,
    FP8,
    PLACES,
    PRODUCTS,
    draw_fp8_layer,
    draw_fp8_products,
    toy_layer,
    toy_operands,
)  # fmt: skip
from minids.book.plots.style import INK, tint
from minids.quantization.fp8 import dequantize
from minids.quantization.products import Recipe, forward, input_grad, use_fp8, weight_grad

pytestmark = pytest.mark.xdist_group("pictures")  # in one process, as other pictures


SAID = {"Fprop": "12 products in 3 tiles, with 3 pairs of scales", "Dgrad": "Dgrad: 2 tiles along the sum",
        "Wgrad": "sums over 8 tokens", ACROSS: "8 products have 8 pairs of scales"}  # fmt: skip


def written(fig, y: float) -> list[float]:
    """The numbers at a height, from the left."""
    texts = [text for text in fig.axes[0].texts if text.get_position()[1] == y and text.get_text() != "scales"]
    return [float(t.get_text().replace("−", "-")) for t in sorted(texts, key=lambda text: text.get_position()[0])]


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_drawn_sum_is_the_library_s_and_the_named_tiles_are_the_recipe_s(product):
    recipe = Recipe.of_block(4)
    if product == ACROSS:
        recipe = replace(recipe, over_tokens=recipe.inputs)
    x, weight, dy = toy_layer()
    y, saved = forward(x, weight[None], [len(x)], recipe)
    results = {"F": y, "D": input_grad(dy, saved), "W": weight_grad(dy, saved)[0]}
    for row, column in ((2, 5), (7, 0)):
        fig = draw_fp8_products(product, row, column)
        value = float(fig.alt.rsplit("= ", 1)[1].replace("−", "-"))
        assert value == pytest.approx(results[product[0]][row, column].item(), abs=6e-4)
        assert_legible(fig)
        left, right = toy_operands(product, recipe)
        numbers = [*left.values[row].tolist(), *right.values[:, column].tolist()]
        assert [*written(fig, 98), *written(fig, 78)] == pytest.approx(numbers, rel=5e-3)
        scales = [
            *dequantize(left)[row] / left.values[row].float(),
            *dequantize(right)[:, column] / right.values[:, column].float(),
        ]
        group = math.gcd(left.tile[1], right.tile[0])
        assert [*written(fig, 113), *written(fig, 57)] == pytest.approx([float(s) for s in scales[::group]], abs=6e-4)
        inked = [patch.get_xy() for patch in fig.axes[0].patches if to_rgb(patch.get_facecolor()) == to_rgb(INK)
                 and isinstance(patch, Rectangle)]  # fmt: skip
        result = next(
            patch
            for patch in fig.axes[0].patches
            if isinstance(patch, Rectangle)
            and to_rgb(patch.get_edgecolor()) == to_rgb("#B9BDC3")
            and patch.get_y() <= inked[0][1] < patch.get_y() + patch.get_height()
        )
        assert inked == [(result.get_x() + CELL * column, result.get_y() + CELL * (len(results[product[0]]) - 1 - row))]
        assert SAID[product] in fig.alt
        patches = [patch for patch in fig.axes[0].patches if isinstance(patch, Rectangle)]
        first, second = [patch for patch in patches if patch.get_facecolor()[3] == 0]  # the frames, in order
        dark = [p for p in patches if to_rgb(p.get_facecolor()) in (to_rgb(tint(FP8, 0.62)), to_rgb(tint(FP8, 0.9)))]
        for frame in (first, second):
            within = [
                p
                for p in dark
                if p.get_x() < frame.get_x() + frame.get_width() and frame.get_x() < p.get_x() + p.get_width()
            ]
            assert all(
                p.get_y() <= frame.get_y() + frame.get_height() - 0.1
                and frame.get_y() + 0.1 <= p.get_y() + p.get_height()
                for p in within
            )
            assert within
        assert first.get_y() == pytest.approx(result.get_y() + CELL * (len(results[product[0]]) - 1 - row))
        assert second.get_x() == pytest.approx(PLACES[1] + CELL * column)
    drawn = {text.get_text() for text in fig.axes[0].texts}
    assert {f"sum over {what}" for what in ("channels of x", "channels of y", "tokens")} <= drawn
    upright = recipe.over_tokens
    sides = {"x": recipe.inputs, "Wᵀ": recipe.weights[::-1], "dy": recipe.gradients, "W": recipe.weights,
             "dyᵀ": upright[::-1]}  # fmt: skip
    named = {f"{name}  {rows} × {columns}" for name, (rows, columns) in sides.items()}
    assert named | {f"x  {upright[0]} × {upright[1]}"} == {text for text in drawn if re.search(r"  \d × \d", text)}


def test_the_layer_s_picture_names_what_the_report_keeps_in_higher_precision():
    model = small_model(num_nextn_predict_layers=1)
    with pytest.raises(ValueError, match="use_fp8"):
        draw_fp8_layer(model)
    use_fp8(model)
    kept = set(c07_products.formats_of(model)[False])
    assert kept == {"embed_tokens", "norms", "gate", "lm_head", "eh_proj"}
    fig = draw_fp8_layer(model)
    drawn = {text.get_text() for text in fig.axes[0].texts}
    assert kept | {"attention itself", "o_proj (x kept in E5M6)", "experts"} <= drawn
    texts = [text.get_text() for text in fig.axes[0].texts]
    formats = ("E4M3, 1 × 128", "E4M3, 128 × 1", "E4M3, 128 × 128", "BF16", "FP32", "FP32, master")
    assert [texts.count(format) for format in formats] == [2, 2, 1, 5, 1, 1]  # BF16: x, y, dy, dx, and the moments
    assert_legible(fig)


def drawn_bits(fig) -> dict[float, tuple[float, float]]:
    """The number in each row of bits, from the top, and the part of it that is drawn as lost."""
    lost_faces, rows = {to_rgb(tint(LOST, share)) for share in (0.6, 0.22)}, {}
    for text in fig.axes[0].texts:
        x, y = text.get_position()
        if text.get_text() in ("0", "1") and x < 560:
            place = c07_accumulate.HIGHEST - (x - c07_accumulate.COLUMN) / c07_accumulate.PITCH + 0.5
            face = next(p.get_facecolor()[:3] for p in fig.axes[0].patches if p.contains_point(
                fig.axes[0].transData.transform((x, y))))  # fmt: skip
            bit = float(text.get_text()) * 2.0 ** round(place)
            value, lost = rows.get(y, (0.0, 0.0))
            rows[y] = value + bit, lost + bit * (face in lost_faces)
    return {y: rows[y] for y in sorted(rows, reverse=True)}


@pytest.mark.parametrize("cut", ["products", "sums"])
@pytest.mark.parametrize("exponent", [8, 12, 16])
def test_the_bits_add_up_to_what_the_library_s_register_holds(exponent, cut):
    fig = draw_cut_products(exponent, cut)
    (running, _), *products, (exact, lost), (kept, none) = drawn_bits(fig).values()
    assert (running, kept, none) == (*next_sum(exponent, 14, cut), 0)
    assert [value for value, _ in products] == [a * b for a, b in FACTORS]
    assert exact == running + sum(value for value, _ in products)
    assert f"{1 - (kept - running) / (exact - running):.1%} of what is added is cut off" in title(fig)
    said = [float(number.replace(",", "")) for number in re.findall(r"(?:exact sum|kept) ([\d,.]*\d)", fig.alt)]
    assert said == pytest.approx([exact, kept], abs=6e-4)
    written = [text.get_text() for text in fig.axes[0].texts if text.get_position()[0] == 634][:-1]
    values = [running, *(value for value, _ in products), exact, kept]
    assert [float(number.replace(",", "")) for number in written] == pytest.approx(values, abs=6e-4)
    if cut == "sums":
        assert exact - lost == kept
    else:
        assert 0 <= exact - sum(gone for _, gone in products) - kept < kept * 2**-13  # a carry costs one bit more
    assert_legible(fig)


def test_the_error_s_picture_shows_the_numbers_that_it_is_given():
    names = ("never", "512", "128", "32", "FP32", "operands")

    def errors(size: float) -> dict:
        return {name: [(size * k * 10.0 ** (-n - 2), size * k * 10.0 ** (-n - 1.5)) for k in (1, 2, 3)]
                for n, name in enumerate(names)}  # fmt: skip

    found = {"products": errors(2), "sums": errors(1)}
    fig = draw_accumulation_error([1024, 4096, 16384], {"positive": found}, data="positive")
    assert "the median error is at most 0.06%;" in title(fig)
    assert "cut off sums: never 2% to 6.3%" in fig.alt
    assert "cut off products: never 4% to 13%" in fig.alt
    assert "positive" in fig.alt
    for ax, of in zip(fig.axes, found.values(), strict=True):
        medians = [[median for median, _ in of[name]] for name in (*c07_accumulate.LINES, "operands")]
        assert all(median in [list(line.get_ydata()) for line in ax.lines] for median in medians)
        assert [list(line.get_data()) for line in ax.lines if line.get_marker() == "*"] == [[[4096], [0.02]]]
        highest = float(re.search(r"always below (\S+)%", ax.texts[-1].get_text())[1]) / 100
        assert max(most for _, most in of["FP32"]) <= highest
    assert_legible(fig)
    with pytest.raises(ValueError, match="data"):
        draw_accumulation_error([1024, 4096], {"positive": found}, data="uniform")
