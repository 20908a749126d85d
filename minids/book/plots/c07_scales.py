"""What a scale costs and saves: one outlier in a tensor, a block or a tile; real tensors; the width of a tile."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, MultipleLocator
from torch import Tensor

from minids.book.plots.c07_formats import COLORS
from minids.book.plots.helpers import DASHED, label_ends, log_scale, name_ticks
from minids.book.plots.style import INK, MUTED, PAPER, Picture, new_figure, readable_on, styled
from minids.quantization.formats import E2M1, E4M3, Format
from minids.quantization.fp8 import Tile, dequantize, quantize
from minids.validation import is_number, require, require_whole

MAP = "cividis_r"  # of errors: the darker, the larger
SIDE, CELL = 384, (4, 8)  # rows and columns of the matrix with an outlier; numbers that share a point of its map
ERRORS = (0.02, 1.0)  # where the map's scale ends
AROUND: dict[str, Tile | None] = {"one scale": None, "blocks of 128 × 128": (128, 128), "tiles of 1 × 128": (1, 128)}
TILINGS: dict[str, Tile | None] = {
    "tensor": None, "128 × 128": (128, 128), "row": (1, 2**30), "1 × 128": (1, 128), "1 × 32": (1, 32),
    "1 × 16": (1, 16),
}  # fmt: skip
WIDTHS = [2**n for n in range(3, 13)]  # of tiles
ROWS, FEW, LARGER = 128, 100, 100  # of the numbers in tiles: one channel in FEW is LARGER times as large


def rounded(x: Tensor, tile: Tile | None, **how) -> Tensor:
    """Return what x is after it was quantised in such tiles."""
    return dequantize(quantize(x, tile, **how))


def relative_error(x: Tensor, rounded: Tensor) -> float:
    """Return the norm of the error over the norm of the numbers."""
    return ((rounded - x).norm() / x.norm()).item()


def zeros(x: Tensor, rounded: Tensor) -> float:
    """Return the share of numbers that are not 0 and become 0."""
    return ((rounded == 0) & (x != 0)).float().mean().item()


@cache
def _normal(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@styled()
def draw_outlier(size: float = 100_000, row: int = 200, column: int = 300) -> Picture:
    """Draw the relative error in a matrix of normal numbers with one outlier, for one scale, for blocks and for tiles.

    Each point of the maps is the error of 4 x 8 numbers, without the outlier. Raises ValueError for a size that is not
    at least 1, and for a place outside of the matrix.
    """
    require("size", size, is_number(size) and size >= 1, "at least 1")
    for name, place in (("row", row), ("column", column)):
        require_whole(name, place, 0, SIDE - 1)
    x = _normal(SIDE, SIDE).clone()
    x[row, column] = size
    others = torch.ones_like(x, dtype=torch.bool)
    others[row, column] = False
    fig, said = new_figure(height=4.6), []
    for i, (name, tile) in enumerate(AROUND.items()):
        result = rounded(x, tile)
        lost, error = zeros(x[others], result[others]), relative_error(x[others], result[others])
        ax = fig.add_axes((0.055 + 0.318 * i, 0.195, 0.295, 0.577))
        image = ax.imshow(
            _by_cell(x * others, result * others), cmap=MAP, norm=LogNorm(*ERRORS), interpolation="nearest",
            extent=(0, SIDE, SIDE, 0),
        )  # fmt: skip
        _outline(ax, tile or (SIDE, SIDE), row, column)
        ax.set(xticks=range(0, SIDE, 128), yticks=range(0, SIDE, 128))
        ax.tick_params(labelleft=not i, length=3)
        ax.spines[:].set_visible(False)
        ax.set_title(f"{name}\n{_percent(lost)} zero, error {_percent(error)}", size=12, pad=7)
        said.append((name, lost, error))
    bar = fig.colorbar(image, cax=fig.add_axes((0.055, 0.085, 0.27, 0.024)), orientation="horizontal")
    bar.ax.xaxis.set_major_locator(FixedLocator([0.02, 0.05, 0.1, 0.3, 1]))
    bar.ax.minorticks_off()
    bar.ax.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    bar.outline.set_visible(False)
    first = fig.axes[0]
    for x, y, name, how in ((1, -0.035, "column", "top"), (-0.03, 0, "row", "bottom")):
        first.text(x, y, name, size=11, color=MUTED, ha="right", va=how, transform=first.transAxes)
    fig.note(0.373, 0.03, f"shade: relative error of {CELL[0]} × {CELL[1]} numbers together\n"
             "cross: the outlier; frame or brackets: the numbers with the same scale", linespacing=1.5)  # fmt: skip
    shares = [_percent(lost) for _, lost, _ in said]
    fig.title(f"Outlier of {size:,.0f}: one scale turns {shares[0]} of the others into 0, blocks {shares[1]}, "
              f"tiles {shares[2]}", y=0.925)  # fmt: skip
    fig.alt = f"{SIDE} × {SIDE} normal numbers, one of them {size:,.0f} at row {row}, column {column}. " + "; ".join(
        f"{name}: {_percent(lost)} of the others become 0, their error is {_percent(error)}"
        for name, lost, error in said
    )
    return fig


def _by_cell(x: Tensor, result: Tensor) -> np.ndarray:
    """Return the relative error of each cell of numbers."""

    def norm(numbers: Tensor) -> Tensor:
        return numbers.unflatten(0, (-1, CELL[0])).unflatten(2, (-1, CELL[1])).square().sum(dim=(1, 3)).sqrt()

    return (norm(result - x) / norm(x)).numpy()


def _outline(ax: Axes, tile: Tile, row: int, column: int) -> None:
    """Mark the outlier by a cross and its tile by a frame, or by brackets where a frame would hide it.

    The whole matrix has neither.
    """
    height, width = tile
    top, left = row // height * height, column // width * width
    how = {"color": INK, "linewidth": 1.4, "clip_on": False}
    if height == 1:
        for x, inwards in ((left, 5), (left + width, -5)):
            ax.plot([x + inwards, x, x, x + inwards], [row - 9, row - 9, row + 10, row + 10], **how)
    elif tile != (SIDE, SIDE):
        ax.add_artist(Rectangle((left, top), width, height, fill=False, **how))
    ax.set(xlim=(0, SIDE), ylim=(SIDE, 0))
    ax.plot(column + 0.5, row + 0.5, "X", markersize=11, color=PAPER, markeredgecolor=INK, clip_on=False)


def _percent(share: float) -> str:
    """Return a share with two digits: 17%, 2.6%, 0.03%."""
    if 0 < share < 1e-4:
        return "<0.01%"
    return f"{share:.0%}" if share > 0.1 else f"{100 * share:.2g}%"


def column_error(x: Tensor, result: Tensor) -> float:
    """Return the relative error of the median column: an outlier channel does not hide that of the others."""
    return ((result - x).norm(dim=0) / x.norm(dim=0))[x.norm(dim=0) > 0].median().item()


@styled()
def draw_tilings(tensors: dict[str, Tensor]) -> Picture:
    """Draw the share of numbers that become 0 and the error of the median column, for each tensor and tiling.

    The last tensor is one that was given a large channel. Raises ValueError for fewer than two.
    """
    require("tensors", list(tensors), len(tensors) > 1, "at least two")
    found = {name: [(zeros(x, y), column_error(x, y)) for y in (rounded(x, tile) for tile in TILINGS.values())]
             for name, x in tensors.items()}  # fmt: skip
    fig = new_figure(height=1.4 + 0.62 * len(tensors))
    height = fig.get_size_inches()[1]
    ax = fig.add_axes((0.255, 0.16 / height, 0.73, 0.62 * len(tensors) / height))
    shares = np.array([[lost for lost, _ in row] for row in found.values()])
    norm = LogNorm(1e-5, 1)
    image = ax.imshow(shares.clip(min=1e-5), cmap=MAP, norm=norm, aspect="auto")
    for y, row in enumerate(found.values()):
        for x, (lost, error) in enumerate(row):
            ink = readable_on(image.cmap(norm(max(lost, 1e-5))))
            ax.text(x, y - 0.18, f"{_percent(lost)} zero", ha="center", va="center", size=11, color=ink)
            ax.text(x, y + 0.2, f"error {_percent(error)}", ha="center", va="center", size=11, color=ink)
    ax.set_xticks(np.arange(-0.5, len(TILINGS)), minor=True)
    ax.set_yticks(np.arange(-0.5, len(tensors)), minor=True)
    ax.grid(which="minor", color="white", linewidth=2)
    ax.tick_params(which="minor", length=0)
    ax.spines[:].set_visible(False)
    name_ticks(ax, "y", list(tensors))
    name_ticks(ax, "x", list(TILINGS))
    ax.xaxis.tick_top()
    ax.tick_params(axis="x", length=0, labeltop=True, labelbottom=False, labelsize=12)
    ax.text(-0.01, 1.045, "one scale for each", ha="right", size=11, color=MUTED, transform=ax.transAxes)
    own, made = _percent(shares[:-1, 0].max()), _percent(shares[-1, 0])
    fig.title(f"With one scale, at most {own} become 0, but {made} beside a channel made large", y=1 - 0.34 / height)
    fig.note(0.02, 1 - 0.63 / height, "shade: the share of numbers that become 0; error: relative, of the median "
             "column")  # fmt: skip
    fig.alt = "; ".join(
        f"{tensor}: ".replace("\n", " ")
        + ", ".join(f"{tiling} {lost:.1%} zero, error {error:.1%}"
                    for tiling, (lost, error) in zip(TILINGS, row, strict=True))
        for tensor, row in found.items()
    )  # fmt: skip
    return fig


@cache
def width_errors(format: Format, large: bool, power_of_two_scales: bool = False) -> list[float]:
    """Return the relative error of normal numbers for each width of a tile; with large channels, that of the others."""
    x, keep = _normal(ROWS, WIDTHS[-1]), torch.ones(WIDTHS[-1], dtype=torch.bool)
    if large:
        keep[torch.randperm(WIDTHS[-1], generator=torch.Generator().manual_seed(0))[: WIDTHS[-1] // FEW]] = False
        x = torch.where(keep, x, LARGER * x)
    results = (rounded(x, (1, n), format=format, power_of_two_scales=power_of_two_scales) for n in WIDTHS)
    return [relative_error(x[:, keep], result[:, keep]) for result in results]


def _width_and_cost(width: float) -> str:
    bits = f"{32 / width:.2f}" if width > 16 else f"{32 / width:.0f} bits"
    return f"{width:.0f}\n{bits}"


@styled()
def draw_tile_width() -> Picture:
    """Draw the error against the width of a tile, for 8 and 4 bits, with and without large channels."""
    fig = new_figure(height=4.7)
    said, at = [], {n: WIDTHS.index(n) for n in (16, 128)}
    for i, (format, top) in enumerate(((E4M3, 0.03), (E2M1, 1.0))):
        ax = fig.add_axes((0.075 + 0.49 * i, 0.24, 0.275, 0.5))
        even, large = width_errors(format, False), width_errors(format, True)
        color = COLORS[format.name]
        ax.plot(WIDTHS, even, color=color)
        ax.plot(WIDTHS, large, color=color, linestyle=DASHED)
        ends = {"normal": (even[-1], color), "large channels": (large[-1], color)}
        if format is E4M3:
            powers = width_errors(format, False, True)
            ax.plot(WIDTHS, powers, color=MUTED)
            ends["powers of two"] = (powers[-1], MUTED)
        for n, place in at.items():
            ax.plot([n, n], [even[place], large[place]], "o", color=color, markersize=6)
        log_scale(ax, "x", _width_and_cost, [16, 128, 1024], base=2)
        ax.set(xlim=(WIDTHS[0], WIDTHS[-1]), ylim=(0, 1.03 * top))
        ax.yaxis.set_major_locator(MultipleLocator(0.01 if format is E4M3 else 0.2))
        ax.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        label_ends(ax, ends, gap=0.085 * top, size=11)
        fig.note(0.02 + 0.49 * i, 0.78, f"{format.name}, {format.bits} bits", size=12, color=INK, weight="bold")
        said.append(f"{format.name}: " + ", ".join(
            f"tiles of {n} {_percent(even[place])}, with large channels {_percent(large[place])}"
            for n, place in at.items()))  # fmt: skip
    fig.note(0.02, 0.86, "relative error of normal numbers; dashed: of the others, beside 1% of channels 100 times "
             "larger")  # fmt: skip
    fig.note(0.02, 0.03, "columns of a tile, and what scales of 32 bits cost for each number; grey: scales are powers "
             "of two")  # fmt: skip
    eight, four = (
        " → ".join(_percent(width_errors(format, True)[at[n]]) for n in (128, 16)) for format in (E4M3, E2M1)
    )
    fig.title(f"Tiles of 16 instead of 128 help 8 bits little ({eight}), 4 bits much ({four})")
    fig.alt = "Relative error by width of tile. " + "; ".join(said)
    return fig
