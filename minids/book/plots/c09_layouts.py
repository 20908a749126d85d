"""Who has which part of a batch and which experts, in a layout of processes; and how many numbers each keeps.

A layout (parallel/layout.py) cuts the layers by `pp`, the batch by `dp` and the experts by `ep`. The ranks of a stage
compute different parts of the batch, and they share the stage's experts: a letter stands for the experts of one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from string import ascii_uppercase

from minids.book.plots.diagram import Diagram
from minids.book.plots.helpers import DASHED, label, name_ticks
from minids.book.plots.style import INK, LAYERS, MUTED, PAPER, Picture, new_figure, styled, tint
from minids.parallel.layout import Layout
from minids.parallel.schedules import SCHEDULES
from minids.validation import require, require_whole

MOST_STAGES, MOST_COLUMNS, MOST_LAYOUTS, MOST_BARS = 8, 8, 5, 24
STAGE_COLORS = LAYERS[3], LAYERS[1], LAYERS[6], LAYERS[4]  # again from the fifth stage on; letters tell them apart
LEFT, RIGHT, CELL, GAP, BETWEEN = 134, 636, 60, 6, 12  # points; between copies there is more space than a gap
WEIGHTS, MOMENTS = LAYERS[1], tint(LAYERS[5], 0.55)
LEAST_WIDTH = 8  # of the axis, in bars
NUMBERS_KEPT = 3  # for each weight: itself and two moments


@styled()
def draw_grid(layout: Layout) -> Picture:
    """Draw the ranks of a layout: a row for each stage, a column for each part of the batch, a letter for its experts.

    Cells with one letter compute with the same experts. (What of them is also stored on a rank depends on ZeRO.) Raises
    ValueError for more than 8 stages or 8 ranks of a stage, and for schedules with several stages on a rank.
    """
    require("pp", layout.pp, layout.pp <= MOST_STAGES, f"at most {MOST_STAGES}")
    require("dp", layout.dp, layout.dp <= MOST_COLUMNS, f"at most {MOST_COLUMNS}")
    name = layout.schedule or "1F1B"
    single = layout.pp == 1 or SCHEDULES[name](layout.pp, 4 * layout.pp).chunks == 1
    require("schedule", layout.schedule, single, "one with a single stage on each rank, such as 1F1B")
    d = Diagram(height=(CELL + GAP) * layout.pp + 188)
    top = d.height - 118
    room = RIGHT - LEFT - BETWEEN * (layout.copies - 1)
    pitch = min(122, room / layout.dp)
    size = 12 if pitch > 80 else 11

    def left_of(place: int) -> float:
        return LEFT + pitch * place + BETWEEN * (place // layout.ep)

    said, floor = [], top - (CELL + GAP) * layout.pp + GAP
    for rank in range(layout.ranks):
        stage, place = layout.coordinates(rank)
        letter, x, y = letter_of(layout, rank), left_of(place), top - (CELL + GAP) * stage - CELL
        d.box(x, y, pitch - GAP, CELL, color=color_of(layout, rank))
        lines = {f"rank {rank}": "bold", f"part {place}": "normal", f"experts {letter}": "normal"}
        for i, (text, weight) in enumerate(lines.items()):
            d.text(x + (pitch - GAP) / 2, y + 41 - 17 * i, text, size=size, ha="center", weight=weight)
        said.append(f"rank {rank}: stage {stage}, part {place}, experts {letter}")
    for stage in range(layout.pp):
        d.text(LEFT - 12, top - (CELL + GAP) * stage - CELL / 2, f"stage {stage}", ha="right", va="center", size=12)

    end = left_of(layout.dp - 1) + pitch - GAP
    _bracket(d, (LEFT, top + 44), (end, top + 44), 6)
    d.text(LEFT, top + 51, f"dp = {layout.dp}: {'parts of the batch' if layout.dp > 1 else 'the whole batch'}", size=12)
    for first in range(0, layout.dp, layout.ep):
        right = left_of(first + layout.ep - 1) + pitch - GAP
        _bracket(d, (left_of(first), top + 8), (right, top + 8), 5)
        text = f"ep = {layout.ep}"
        told = f"{text}: all experts once"
        wide = right - left_of(first) > 7 * len(told)
        d.text(left_of(first), top + 15, told if wide else text, size=12)
    _bracket(d, (66, floor), (66, top), 6)
    d.text(60, (top + floor) / 2, f"pp = {layout.pp}", ha="right", va="center", size=12)
    middles = [left_of(first) + (pitch - GAP) / 2 for first in range(0, layout.dp, layout.ep)]
    for x in middles if layout.copies > 1 else ():
        d.line((middles[0], floor - 14), (x, floor - 14), (x, floor - 5), arrow=False)
    alike = "the ranks with the same experts" if layout.copies > 1 else "no two ranks have the same experts"
    d.text(LEFT, floor - 30, f"copies = {layout.copies}: {alike}", size=12)
    d.text(13, 12, "The same letter and colour: the same experts of the same layers", color=MUTED)
    finding = grid_finding(layout)
    d.text(13, d.height - 26, finding, size=14)
    d.figure.alt = f"{finding}. {'; '.join(said)}."
    return d.figure


def letter_of(layout: Layout, rank: int) -> str:
    """Return the letter of a rank's experts: the stages have different ones, and in a stage each place of `ep`."""
    stage, place = layout.coordinates(rank)
    number = stage * layout.ep + place % layout.ep
    letters = len(ascii_uppercase)
    return ascii_uppercase[number % letters] + f"{number // letters + 1}" * (number >= letters)


def color_of(layout: Layout, rank: int) -> str:
    """Return the color of a rank's experts: a hue for each stage, a shade for each place."""
    stage, place = layout.coordinates(rank)
    share = 0.65 - 0.42 * (place % layout.ep) / max(1, layout.ep - 1)
    return tint(STAGE_COLORS[stage % len(STAGE_COLORS)], share)


def grid_finding(layout: Layout) -> str:
    copies, dp, pp = layout.copies, layout.dp, layout.pp
    ranks = f"{layout.ranks} ranks" if layout.ranks > 1 else "1 rank"
    if layout.ranks == 1:
        return f"{ranks}: it has all experts and the whole batch"
    if dp == 1:
        return f"{ranks}: {pp} stages; each expert is computed on the only rank of its stage"
    both = "both" if dp == 2 else f"all {dp}"
    if pp == 1:
        return f"{ranks}: each expert is computed on {both if copies == dp else copies} of them"
    on = both if copies == dp else f"{copies} of the {dp}"
    return f"{ranks}: {pp} stages; each expert is computed on {on} ranks of a stage"


def _bracket(d: Diagram, start: tuple[float, float], end: tuple[float, float], depth: float) -> None:
    """Draw a bracket above a row of cells, or to the left of a column of them."""
    (x0, y0), (x1, y1) = start, end
    inner = [(x, y - depth) if y0 == y1 else (x + depth, y) for x, y in (start, end)]
    d.line(inner[0], (x0, y0), (x1, y1), inner[1], arrow=False)


@styled()
def draw_kept(kept: dict[str, tuple[Sequence[int], Sequence[int]]], whole: int) -> Picture:
    """Draw how many weights and moments each rank keeps, by the name of a layout, as shares of what one process keeps.

    One process keeps three numbers for each of the `whole` weights of the model: itself and two moments. Raises
    ValueError for another number of layouts than 1 to 5, for layouts of different numbers of ranks, and for more than
    24 bars.
    """
    require("layouts", len(kept), 1 <= len(kept) <= MOST_LAYOUTS, f"1 to {MOST_LAYOUTS} of them")
    require_whole("whole", whole)
    sizes = [len(numbers) for both in kept.values() for numbers in both]
    require("ranks", sizes, len(set(sizes)) == 1 and sizes[0] > 0, "one number, in all layouts")
    ranks = sizes[0]
    require("ranks", ranks, ranks * len(kept) <= MOST_BARS, f"at most {MOST_BARS // len(kept)} for {len(kept)} layouts")
    shares = {name: [[n / (NUMBERS_KEPT * whole) for n in part] for part in both] for name, both in kept.items()}
    totals = {name: [sum(pair) for pair in zip(*both, strict=True)] for name, both in shares.items()}
    highest = max(map(max, totals.values()))
    fig = new_figure(height=4.8)
    ax = fig.add_axes((0.07, 0.215, 0.87, 0.58))
    ground = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}  # the line at an equal share stops there
    group = ranks + 0.9  # bars and the space after them, in bars
    for i, (name, (weights, moments)) in enumerate(shares.items()):
        places = [i * group + rank for rank in range(ranks)]
        ax.bar(places, weights, width=0.82, color=WEIGHTS)
        ax.bar(places, moments, width=0.82, bottom=weights, color=MOMENTS)
        said = [f"{total:.0%}" for total in totals[name]]
        for _, run in groupby(range(ranks), key=said.__getitem__):  # once above neighbours of the same height
            alike = list(run)
            at = (places[0] + (alike[0] + alike[-1]) / 2, totals[name][alike[0]])
            label(ax, said[alike[0]], at, (0, 4), bbox=ground, zorder=4)
        label(ax, name, (places[0] - 0.41, 0), (0, -36), ha="left", size=12, weight="bold")
    bars = [i * group + rank for i in range(len(kept)) for rank in range(ranks)]
    name_ticks(ax, "x", [str(rank) for rank in range(ranks)] * len(kept), bars)
    ax.tick_params(axis="x", labelsize=11)
    end = max(bars[-1], LEAST_WIDTH) + 0.6
    ax.set(xlim=(-0.6, end), ylim=(0, 1.12 * max(highest, 1 / ranks)), yticks=[])
    ax.spines["left"].set_visible(False)
    ax.axhline(1 / ranks, color=INK, linewidth=1.2, linestyle=DASHED, zorder=3)
    label(ax, f"1/{ranks}", (end, 1 / ranks), (4, 0), size=12)
    fig.note(0.02, 0.206, "rank", va="top")
    for x, name, color in ((0.02, "weights", WEIGHTS), (0.16, "moments of the optimizer", MOMENTS)):
        fig.text(x, 0.85, "■", size=12, color=color)
        fig.note(x + 0.022, 0.85, name)
    fig.note(0.02, 0.03, "share of what one process keeps, which is three numbers for each weight of the model")
    finding = kept_finding(totals)
    fig.title(finding)
    said = [
        f"{name}: {', '.join(f'{w:.1%} and {m:.1%}' for w, m in zip(*both, strict=True))}"
        for name, both in shares.items()
    ]
    fig.alt = f"{finding}. Weights and moments by rank: {'; '.join(said)}."
    return fig


def kept_finding(totals: dict[str, list[float]]) -> str:
    low, high = (f"{find(map(find, totals.values())):.0%}" for find in (min, max))
    if low == high:
        return f"Each rank keeps {low} of what one process keeps"
    most = max(totals, key=lambda name: max(totals[name]))
    return f"A rank keeps {low} to {high} of what one process keeps; the most with {most}"
