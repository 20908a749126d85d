"""The three products of a linear layer in FP8: their tiles, what a tile's scale does, and every format (chapter 7)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.textpath import TextPath
from torch import Tensor

from minids.book.plots.c07_formats import COLORS
from minids.book.plots.diagram import LINE, Diagram
from minids.book.plots.style import INK, LAYERS, MUTED, PAPER, Picture, styled, tint
from minids.model.deepseek import DeepSeek
from minids.model.layers import RMSNorm
from minids.quantization.fp8 import Quantized, dequantize
from minids.quantization.products import Recipe
from minids.validation import require, require_whole

FP8, SUM = COLORS["E4M3"], LAYERS[7]  # colours: numbers in E4M3, the dimension that is summed over
TILE, TOKENS, CHANNELS, OUTPUTS = 4, 8, 12, 8  # of the toy layer: 4 stands for 128
ACROSS = "Wgrad, not re-tiled"
PRODUCTS = ("Fprop", "Dgrad", "Wgrad", ACROSS)
NAMES = {"F": ("x", "Wᵀ", "y"), "D": ("dy", "W", "dx"), "W": ("dyᵀ", "x", "dW")}  # left times right is result
SUMMED = {"F": "channels of x", "D": "channels of y", "W": "tokens"}
FINDINGS = {
    "Fprop": f"Fprop: {CHANNELS} products in {CHANNELS // TILE} tiles, with {CHANNELS // TILE} pairs of scales",
    "Dgrad": f"Dgrad: {OUTPUTS // TILE} tiles along the sum, and W has the same blocks as in Fprop",
    "Wgrad": f"Wgrad sums over {TOKENS} tokens: both operands need tiles along the tokens",
    ACROSS: f"Tiles across the sum: {TOKENS} products have {TOKENS} pairs of scales",
}
TILES = {
    "Fprop": "x: tiles of a token\nW: square blocks",
    "Dgrad": "dy: tiles of a token\nW: the same blocks",
    "Wgrad": "dy and x: upright,\n4 tokens of a channel",
    ACROSS: "dy and x as in the\nother two products",
}
CELL, PLACES = 6.5, (172, 298, 418)  # points: a number; operands and result, from the left
TOPS = {"Fprop": 406, "Dgrad": 290, "Wgrad": 204}  # points


def toy_layer() -> list[Tensor]:
    """Return x, W and dy of the layer that is drawn."""
    generator = torch.Generator().manual_seed(4)
    shapes = (TOKENS, CHANNELS), (OUTPUTS, CHANNELS), (TOKENS, OUTPUTS)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def toy_operands(product: str, recipe: Recipe) -> tuple[Quantized, Quantized]:
    """Return both operands of a product of the toy layer, as the library quantises them: left times right."""
    x, weight, dy = toy_layer()
    kept, w = recipe.cast(x, recipe.inputs), recipe.cast(weight, recipe.weights)
    if product == "Fprop":
        return kept, w.mT
    if product == "Dgrad":
        return recipe.cast_gradient(dy, recipe.gradients), w
    return recipe.cast_gradient(dy, recipe.over_tokens).mT, recipe.cast(dequantize(kept), recipe.over_tokens)


@styled()
def draw_fp8_products(product: str = "Wgrad", row: int = 2, column: int = 5) -> Picture:
    """Draw the three products with the tiles of V3's recipe, 4 instead of 128, and the sum of one output in numbers.

    The fourth product is Wgrad with the tiles that Fprop and Dgrad have. Raises ValueError for another product, and
    for a row or column that is not from 0 to 7.
    """
    require("product", product, product in PRODUCTS, ", ".join(PRODUCTS))
    for name, place in (("row", row), ("column", column)):
        require_whole(name, place, at_least=0, at_most=min(TOKENS, OUTPUTS) - 1)
    recipe, d = Recipe.of_block(TILE), Diagram(height=480)
    d.text(14, 456, FINDINGS[product], size=14)
    note = (
        f"Tiles of V3’s recipe, {TILE} instead of 128. Shades: tiles, each with its scale. Dark: read for one output."
    )
    d.text(14, 438, note, color=MUTED)
    for name, top in TOPS.items():
        lit = product.startswith(name)
        shown = product if lit else name
        changed = replace(recipe, over_tokens=recipe.inputs) if shown == ACROSS else recipe
        pair = toy_operands(shown, changed)
        _product(d, shown, top, pair, (row, column) if lit else None)
        if lit:
            d.figure.alt = f"{FINDINGS[product]}. {_sum(d, NAMES[product[0]], pair, row, column)}"
    return d.figure


def _product(
    d: Diagram, name: str, top: float, pair: tuple[Quantized, Quantized], place: tuple[int, int] | None
) -> None:
    """Draw left times right is result, with their tiles, and in full colour if an output is to be marked."""
    (left, right), names, color = pair, NAMES[name[0]], INK if place else MUTED
    (M, K), N = left.values.shape, right.values.shape[1]
    height = CELL * max(M, K)
    middle = top - height / 2
    if place:
        d.ax.add_artist(Rectangle((8, top - height - 15), 632, height + 32, facecolor="#F4F4F0", edgecolor="none"))
    d.text(18, middle + 10, name.split(",")[0], size=13, weight="bold", color=color)
    d.text(18, middle - 7, f"{names[2]} = {names[0]} {names[1]}", size=12, color=color)
    d.text(18, middle - 24, f"sum over {SUMMED[name[0]]}", color=SUM)
    d.text(514, middle, TILES[name], color=color, va="center", linespacing=1.4)
    for x, title, rows in zip(
        PLACES, (*(f"{n}  {q.tile[0]} × {q.tile[1]}" for n, q in zip(names, pair, strict=False)), names[2]),
        (M, K, M), strict=True,
    ):  # fmt: skip
        d.text(x, middle + CELL * rows / 2 + 4, title, color=color)
    bottoms = [middle - CELL * rows / 2 for rows in (M, K, M)]
    _tiles(d, PLACES[0], bottoms[0], left, place and range(place[0], place[0] + 1), range(K))
    _tiles(d, PLACES[1], bottoms[1], right, place and range(K), place and range(place[1], place[1] + 1))
    d.ax.add_artist(
        Rectangle((PLACES[2], bottoms[2]), CELL * N, CELL * M, facecolor=PAPER, edgecolor="#B9BDC3", linewidth=1)
    )
    if place:
        d.square(PLACES[2] + CELL * place[1], bottoms[2] + CELL * (M - 1 - place[0]), CELL, INK)
    _both_ways(d, (PLACES[0], bottoms[0] - 6), (PLACES[0] + CELL * K, bottoms[0] - 6))
    _both_ways(d, (PLACES[1] - 7, bottoms[1]), (PLACES[1] - 7, bottoms[1] + CELL * K))
    d.text((PLACES[0] + PLACES[1] + CELL * CHANNELS) / 2 - 3, middle, "·", size=18, ha="center", va="center")
    d.text((PLACES[1] + PLACES[2] + CELL * CHANNELS) / 2, middle, "=", size=14, ha="center", va="center")


def _tiles(d: Diagram, x: float, bottom: float, q: Quantized, rows: range | None, columns: range | None) -> None:
    """Draw an operand's tiles in shades of FP8, dark where they have some of these rows and columns, which get a
    frame."""
    (M, N), (high, wide) = q.values.shape, q.tile
    for i in range(0, M, high):
        for j in range(0, N, wide):
            read = rows and columns and i < rows.stop and rows.start < i + high and j < columns.stop
            dark = read and columns.start < j + wide
            share = ((0.2, 0.36), (0.62, 0.9))[bool(dark)][(i // high + j // wide) % 2]
            spot = x + CELL * j, bottom + CELL * (M - i - high)
            how = {"facecolor": tint(FP8, share), "edgecolor": PAPER, "linewidth": 0.5}
            d.ax.add_artist(Rectangle(spot, CELL * wide, CELL * high, **how))
    if rows and columns:
        d.outline(x + CELL * columns.start, bottom + CELL * (M - rows.stop), CELL * len(columns), CELL * len(rows))


def _both_ways(d: Diagram, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw the dimension that is summed over."""
    how = {"arrowstyle": "<|-|>,head_length=4,head_width=2.4", "mutation_scale": 1, "shrinkA": 0, "shrinkB": 0}
    d.ax.add_artist(FancyArrowPatch(start, end, color=SUM, linewidth=1.6, **how))


def _sum(d: Diagram, names: tuple[str, str, str], pair: tuple[Quantized, Quantized], row: int, column: int) -> str:
    """Draw how one output is summed, in numbers, and return it in words."""
    left, right = pair
    a, b = left.values[row].float(), right.values[:, column].float()
    s_a = left.scales[row // left.tile[0]].repeat_interleave(left.tile[1])
    s_b = right.scales[:, column // right.tile[1]].repeat_interleave(right.tile[0])
    group = math.gcd(left.tile[1], right.tile[0])  # so many products have the same two scales
    wide, start, gap, total, said = 35, 132, 18 if group > 1 else 4, 0.0, []
    d.text(18, 95, f"row {row} of {names[0]}")
    d.text(18, 75, f"column {column} of {names[1]}")
    for y in (113, 57):
        d.text(18, y, "scales", color=MUTED)
    for n, k in enumerate(range(0, len(a), group)):
        x, part = start + n * (group * wide + gap), slice(k, k + group)
        for y, values in ((90, a), (70, b)):
            face = tint(FP8, (0.5, 0.28)[n % 2])
            d.boxes(x, y, values[part].tolist(), (wide, 17), face, show=lambda v: _minus(f"{v:.3g}"), ink=INK)
        middle, plain, scales = x + group * wide / 2, (a[part] * b[part]).sum().item(), (s_a[k].item(), s_b[k].item())
        total += plain * scales[0] * scales[1]
        for y, scale in ((113, scales[0]), (57, scales[1])):
            d.text(middle, y, f"{scale:.4f}" if group > 1 else f"{scale:.3f}", ha="center", color=MUTED, size=10.5)
        if group > 1:
            said.append(_minus(f"{plain:,.0f} · {scales[0]:.4f} · {scales[1]:.4f}"))
            d.text(middle, 34, said[-1], ha="center", size=10)
            d.text(x - gap / 2, 34, "+" if n else "", ha="center")
    how = "Within a tile, tensor cores add FP8 products. Their sum is multiplied by both scales, once, in FP32."
    if group == 1:
        said = [f"{len(a)} products, each with two scales of its own"]
        d.text(start, 34, "FP8 · FP8 · scale · scale  +  FP8 · FP8 · scale · scale  +  …", size=10)
        how = f"{len(a)} products, {len(a)} pairs of scales, no common factor: tensor cores cannot scale each product."
    name, value = f"{names[2]}[{row}, {column}]", _minus(f"{total:.3f}")
    d.text(18, 34, f"{name} =")
    d.text(18, 11, f"= {value}", weight="bold")
    d.text(start, 11, how, size=10, color=MUTED if group > 1 else LAYERS[2])
    return f"{name} = {' + '.join(said)} = {value}"


def _minus(text: str) -> str:
    return text.replace("-", "−")


# ---------------------------------------------------------------------------------------------------
# Every format


def formats_of(model: DeepSeek) -> dict[bool, list[str]]:
    """Return which parts of a model multiply in FP8 (True), and which do not, as `use_fp8` has left it.

    A part is called by the last part of its name; all norms are one.
    """
    found = {True: [], False: []}
    for name, module in model.named_modules():
        if not list(module.parameters(recurse=False)):
            continue
        options = getattr(getattr(module, "product", None), "keywords", {})  # of products.linear
        recipe, kept = options.get("recipe"), options.get("kept")
        part = "norms" if isinstance(module, RMSNorm) else name.rpartition(".")[2]
        part += f" (x kept in {kept.name})" if kept else ""
        if part not in found[recipe is not None]:
            found[recipe is not None].append(part)
    return found


@styled()
def draw_fp8_layer(model: DeepSeek) -> Picture:
    """Draw the formats of a linear layer's tensors in training, and which parts of a model have such layers.

    Raises ValueError for a model without FP8.
    """
    parts = formats_of(model)
    require("model", "without FP8", bool(parts[True]), "one after use_fp8(model)")
    parts[False].append("attention itself")
    d = Diagram(height=372)
    finding = "Only the operands of the products are in FP8: sums, weights and moments are not"
    d.text(14, 348, finding, size=14)
    d.text(14, 330, "A linear layer in V3. Colours: tensors. White: the three products, and the update.", color=MUTED)
    _flow(d)
    d.line((14, 96), (634, 96), arrow=False, lit=False, width=0.8)
    y = _chips(d, 72, "in FP8", parts[True], tint(FP8, 0.3))
    _chips(d, y - 26, "in BF16 or FP32", parts[False], tint(COLORS["BF16"], 0.3))
    d.figure.alt = f"{finding}. In FP8: {', '.join(parts[True])}. Not: {', '.join(parts[False])}"
    return d.figure


def _flow(d: Diagram) -> None:
    """Draw the tensors of a layer: forward at the top, backward at the bottom, the weight and its update between."""
    top, middle, low = 278, 196, 114
    for y, name, product, out in ((top, "x", "Fprop", "y"), (low, "dy", "Dgrad", "dx")):
        _tensor(d, 14, y, name, "BF16", 44)
        _tensor(d, 92, y, name, "E4M3", 92, "1 × 128")
        d.box(514, y, 68, 40, f"{product}\nsums: FP32", size=10.5)
        _tensor(d, 598, y, out, "BF16", 38)
        for start, end in ((58, 92), (184, 514), (582, 598)):
            d.line((start, y + 20), (end, y + 20))
    for name, y in (("x", 23), ("dy", -23)):
        _tensor(d, 92, middle + y, name, "E4M3", 92, "128 × 1")
        d.line((184, middle + 20 + y), (200, middle + 20 + y), (200, middle + 20), arrow=False)
    d.line((138, top), (138, middle + 63))
    d.text(146, top - 13, "kept for Wgrad, re-tiled", size=10, color=MUTED)
    d.line((75, low + 20), (75, middle - 3), (92, middle - 3))
    d.dot(75, low + 20)
    d.box(214, middle, 68, 40, "Wgrad\nsums: FP32", size=10.5)
    _tensor(d, 297, middle, "dW", "FP32", 36)
    d.box(348, middle, 54, 40, "AdamW")
    _tensor(d, 348, middle - 50, "m, v", "BF16", 54)
    _tensor(d, 416, middle, "W", "FP32", 70, "master")
    _tensor(d, 500, middle, "W", "E4M3", 96, "128 × 128")
    for start, end in ((200, 214), (282, 297), (333, 348), (402, 416), (486, 500)):
        d.line((start, middle + 20), (end, middle + 20))
    d.line((375, middle - 10), (375, middle), arrow=False)
    d.line((548, middle + 40), (548, top))
    d.line((548, middle), (548, low + 40))


def _tensor(d: Diagram, x: float, y: float, name: str, format: str, wide: float, more: str = "") -> None:
    face = tint(COLORS[format], 0.22 if format == "FP32" else 0.55)
    d.ax.add_artist(Rectangle((x, y), wide, 40, facecolor=face, edgecolor="none", zorder=3))
    d.text(x + wide / 2, y + 24, name, size=12, weight="bold", ha="center")
    d.text(x + wide / 2, y + 8, f"{format}, {more}" if more else format, size=10, ha="center")


def _chips(d: Diagram, y: float, title: str, names: list[str], face: str) -> float:
    """Draw names in a row, or more than one, and return the height of the last."""
    d.text(14, y + 4, title, weight="bold")
    x = 126
    for name in names:
        wide = TextPath((0, 0), name, size=10).get_extents().width + 12
        if x + wide > 640:
            x, y = 126, y - 21
        d.ax.add_artist(Rectangle((x, y), wide, 16, facecolor=face, edgecolor=LINE, linewidth=0.6, zorder=3))
        d.text(x + wide / 2, y + 4.5, name, size=10, ha="center")
        x += wide + 5
    return y
