"""Who sends how many rows to whom: matrices of ranks, side by side on one scale (chapter 9)."""

from __future__ import annotations

from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_hex
from matplotlib.patches import Rectangle

from minids.book.plots.helpers import name_ticks
from minids.book.plots.style import (
    LAYERS,
    PALE,
    PT_PER_INCH,
    WIDTH,
    Picture,
    new_figure,
    readable_on,
    styled,
)
from minids.cost.traffic import rows_between_nodes, rows_inside_nodes
from minids.validation import require, require_whole

MAP, MARK = matplotlib.colormaps["cividis"], LAYERS[2]
WIDEST, LEFT, GAP, BELOW, ABOVE = 3.75, 0.68, 0.3, 1.42, 1.28  # inches: a panel's side, and what is around it
FEW, LEAST = 8, 9.2  # ranks whose numbers are written, in at least so many points
EVEN = 1.2  # times the mean: if no rank has as much, the busiest one is not worth a word
SIMILAR = 1.1  # numbers of rows that differ by a smaller factor are not the finding


class Busiest(NamedTuple):
    """The rank that sends or receives most, without what it keeps; `share` is relative to the mean of all ranks."""

    rank: int
    does: str  # sends, receives
    rows: int
    share: float


def busiest_of(rows_PP: np.ndarray) -> Busiest:
    """Return the busiest rank; if as many are sent as received at most, the one that receives."""
    moved_PP = rows_PP * (1 - np.eye(len(rows_PP), dtype=int))
    totals = {"receives": moved_PP.sum(axis=0), "sends": moved_PP.sum(axis=1)}
    does = max(totals, key=lambda way: totals[way].max())
    most = int(totals[does].max())
    return Busiest(int(totals[does].argmax()), does, most, most / totals[does].mean() if most else 1.0)


@styled()
def draw_traffic(matrices: dict[str, np.ndarray], ranks_per_node: int) -> Picture:
    """Draw 1 to 4 matrices of rows, (P, P) from sender to receiver, by their titles, on one scale of colours.

    The rank that sends or receives most is outlined in each, if one of them has 1.2 times the mean. What stays on its
    rank, on the diagonal, is not drawn and not counted. Raises ValueError for another number of matrices, or sizes that
    do not fit.
    """
    require("matrices", len(matrices), 1 <= len(matrices) <= 4, "1 to 4 of them")
    shapes = [np.shape(rows_PP) for rows_PP in matrices.values()]
    square = set(shapes) == {shapes[0][:1] * 2} and shapes[0][0] > 1
    require("matrices", shapes, square, "square, of two ranks or more, and all of one size")
    require_whole("ranks_per_node", ranks_per_node)
    ranks = shapes[0][0]
    require("ranks_per_node", ranks_per_node, ranks % ranks_per_node == 0, f"a divisor of the number of ranks, {ranks}")
    matrices = {name: np.asarray(rows_PP).astype(np.int64) for name, rows_PP in matrices.items()}
    away = ~np.eye(ranks, dtype=bool)
    scale = Normalize(0, max(1, *(int(rows_PP[away].max()) for rows_PP in matrices.values())))
    side = min(WIDEST, (WIDTH - LEFT - 0.12 - GAP * (len(matrices) - 1)) / len(matrices))
    uneven = any(busiest_of(rows_PP).share >= EVEN for rows_PP in matrices.values())
    below = BELOW if uneven else BELOW - 0.42
    fig = new_figure(height=side + below + ABOVE)
    high = fig.get_size_inches()[1]
    for i, (name, rows_PP) in enumerate(matrices.items()):
        left = LEFT + i * (side + GAP)
        ax = fig.add_axes((left / WIDTH, below / high, side / WIDTH, side / high))
        _draw(ax, rows_PP, ranks_per_node, scale, side * PT_PER_INCH / ranks, first=i == 0, marked=uneven)
        fig.text(left / WIDTH, 1 - (ABOVE - 0.5) / high, name, size=12, weight="bold")
        counted = _counted(rows_PP, ranks_per_node).replace("nodes, ", "nodes\n")
        fig.note(left / WIDTH, 1 - (ABOVE - 0.1) / high, counted, size=10, linespacing=1.25)
        if uneven:
            busiest = busiest_of(rows_PP)
            said = f"rank {busiest.rank} {busiest.does} {busiest.rows:,}:\n{busiest.share:.2f}× the mean"
            said = said if busiest.rows else "nothing is sent"
            fig.text(left / WIDTH, 0.92 / high, said, size=11, va="top", linespacing=1.3)
    key = "outlined: the busiest rank; " * uneven + "grey: stays on its rank, not counted"
    _scale(fig, scale, high, key)
    finding = _finding(list(matrices.values()), ranks_per_node)
    fig.title(finding, y=1 - 0.36 / high)
    fig.alt = f"{finding}. " + "; ".join(_told(name, rows_PP, ranks_per_node) for name, rows_PP in matrices.items())
    return fig


def _draw(
    ax: Axes, rows_PP: np.ndarray, ranks_per_node: int, scale: Normalize, cell: float, first: bool, marked: bool
) -> None:
    """Draw a matrix, its busiest rank marked or not; a cell has so many points."""
    ranks, few = len(rows_PP), len(rows_PP) <= FEW
    shown = np.ma.masked_array(rows_PP, np.eye(ranks, dtype=bool))
    ax.imshow(shown, cmap=MAP.with_extremes(bad=PALE), norm=scale, interpolation="nearest")
    ax.spines[:].set_visible(False)
    for edge in range(ranks_per_node, ranks, ranks_per_node):
        for line in (ax.axvline, ax.axhline):
            line(edge - 0.5, color="white", linewidth=3 if few else 1.2)
    places = np.arange(ranks) if few else np.arange(0, ranks, ranks_per_node) + (ranks_per_node - 1) / 2
    names = [str(i) for i in range(len(places))]
    name_ticks(ax, "x", names, places)
    name_ticks(ax, "y", names if first else [], places if first else [])
    ax.tick_params(labelsize=11, pad=2)
    ax.set_xlabel("to rank" if few else "to node", size=11, labelpad=2)
    if first:
        ax.set_ylabel("from rank" if few else "from node", size=11)
    size = min(12, cell / (0.65 * len(f"{int(scale.vmax)}") + 0.5))
    if few and size >= LEAST:
        for (sender, receiver), rows in np.ndenumerate(rows_PP):
            if sender != receiver:
                color = readable_on(to_hex(MAP(scale(rows))))
                ax.text(receiver, sender, f"{rows}", size=size, ha="center", va="center_baseline", color=color)
    busiest = busiest_of(rows_PP)
    if busiest.rows and marked:
        corner, wide, tall = (busiest.rank - 0.5, -0.5), 1, ranks
        if busiest.does == "sends":
            corner, wide, tall = corner[::-1], tall, wide
        line = 2.5 if few else 1.6
        ax.add_artist(
            Rectangle(corner, wide, tall, facecolor="none", edgecolor=MARK, linewidth=line, clip_on=False)
        )  # fmt: skip


def _scale(fig: Picture, scale: Normalize, high: float, key: str) -> None:
    """Draw the scale of colours at the lower right, and write what is outlined and grey."""
    most = f"{int(scale.vmax):,}"
    end = 0.975 - 0.0105 * len(most)  # of the bar; the largest number stands beside it
    bar = fig.add_axes((end - 0.1, 0.14 / high, 0.1, 0.12 / high))
    bar.imshow(np.linspace(0, 1, 64)[None], cmap=MAP, aspect="auto", extent=(0, 1, 0, 1))
    bar.axis("off")
    fig.note(end + 0.007, 0.14 / high, most, size=10)
    fig.note(end - 0.107, 0.14 / high, "rows: 0", size=10, ha="right")
    fig.note(LEFT / WIDTH, 0.14 / high, key, size=10)


def _counted(rows_PP: np.ndarray, ranks_per_node: int) -> str:
    between, inside = rows_between_nodes(rows_PP, ranks_per_node), rows_inside_nodes(rows_PP, ranks_per_node)
    return f"{between:,} between nodes, {inside:,} inside nodes"


def _finding(matrices: list[np.ndarray], ranks_per_node: int) -> str:
    """Say how much most and fewest rows differ; where they hardly do, how much the busiest ranks differ."""
    one_node = len(matrices[0]) == ranks_per_node
    count = rows_inside_nodes if one_node else rows_between_nodes
    numbers, shares = (
        [count(rows_PP, ranks_per_node) for rows_PP in matrices],
        [busiest_of(rows_PP).share for rows_PP in matrices],
    )
    if max(numbers) < SIMILAR * min(numbers) and max(shares) >= max(EVEN, SIMILAR * min(shares)):
        return f"Busiest rank: {_range(shares, '.1f')} times the mean of all ranks"
    where = "between ranks" if one_node else "between nodes"
    if min(numbers) == max(numbers):
        return f"{numbers[0]:,} rows are sent {where}"
    factor = f", a factor of {max(numbers) / min(numbers):,.1f}" if min(numbers) else ""
    return f"{where.capitalize()}: {_range(numbers, ',')} rows{factor}"


def _range(numbers: list[float], how: str) -> str:
    low, high = (f"{number:{how}}" for number in (min(numbers), max(numbers)))
    falls = numbers.index(max(numbers)) < numbers.index(min(numbers))
    return low if low == high else f"from {high} down to {low}" if falls else f"from {low} up to {high}"


def _told(name: str, rows_PP: np.ndarray, ranks_per_node: int) -> str:
    busiest = busiest_of(rows_PP)
    return (
        f"{name}: {_counted(rows_PP, ranks_per_node)}, rank {busiest.rank} {busiest.does} most, {busiest.rows:,}, "
        f"{busiest.share:.2f} times the mean"
    )
