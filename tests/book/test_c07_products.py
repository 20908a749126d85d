"""The diagrams of chapter 7's products and sums show what the library does: its tiles, formats and registers."""

import re
from dataclasses import replace

import pytest
import torch
from helpers_training import small_model
from legibility import assert_legible
from matplotlib.colors import to_rgb

from minids.book.plots import c07_accumulate, c07_products
from minids.book.plots.c07_accumulate import FACTORS, LOST, draw_accumulation_error, draw_cut_products, next_sum
from minids.book.plots.c07_products import ACROSS, PRODUCTS, draw_fp8_layer, draw_fp8_products, toy_layer
from minids.book.plots.style import tint
from minids.quantization.products import Recipe, forward, input_grad, use_fp8, weight_grad

pytestmark = pytest.mark.xdist_group("pictures")  # in one process, as other pictures


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
    drawn = {text.get_text() for text in fig.axes[0].texts}
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
    if cut == "sums":
        assert exact - lost == kept
    else:
        assert 0 <= exact - sum(gone for _, gone in products) - kept < kept * 2**-13  # a carry costs one bit more
    assert_legible(fig)


def test_the_error_s_picture_says_the_numbers_that_it_is_given():
    torch.manual_seed(0)
    names = ("never", "512", "128", "32", "FP32", "operands")
    found = {name: [(10.0 ** (-n - 2), 10.0 ** (-n - 1.5))] * 2 for n, name in enumerate(names)}
    errors = {data: dict.fromkeys(("sums", "products"), found) for data in ("normal", "positive")}
    fig = draw_accumulation_error([1024, 4096], errors, data="positive")
    assert "128 0.01% to 0.032%" in fig.alt
    assert "positive" in fig.alt
    assert_legible(fig)
    with pytest.raises(ValueError, match="data"):
        draw_accumulation_error([1024, 4096], errors, data="uniform")
