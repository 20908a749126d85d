"""Which GPU holds which expert: loads before and after EPLB's placement (chapter 9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from minids.book.plots.helpers import DASHED, label, name_ticks
from minids.book.plots.style import (
    INK,
    LAYERS,
    MUTED,
    PALE,
    PAPER,
    PT_PER_INCH,
    Picture,
    new_figure,
    readable_on,
    styled,
    tint,
)
from minids.parallel.eplb import rebalance_experts
from minids.validation import require

REPLICATED = [tint(LAYERS[i], 0.75) for i in (5, 6, 3, 4, 2, 7)] + [tint(LAYERS[i], 0.4) for i in (5, 6, 3, 4, 2, 7)]
SMALLEST = 8.5  # points: a number that the last row of a room can read


class Piece(NamedTuple):
    """What one replica adds to the load of its GPU."""

    gpu: int
    expert: int
    load: float


def in_order(load: Sequence[float], gpus: int) -> list[Piece] | None:
    """Return the placement without replicas, experts in their order; None if the GPUs do not divide them."""
    each, rest = divmod(len(load), gpus)
    return None if rest else [Piece(expert // each, expert, load[expert]) for expert in range(len(load))]


def by_eplb(load: Sequence[float], replicas: int, groups: int, nodes: int, gpus: int) -> list[Piece]:
    """Return EPLB's placement, where an expert's load is divided evenly over its replicas."""
    experts, _, counts = rebalance_experts(torch.tensor([list(load)]), replicas, groups, nodes, gpus)
    counts = counts[0].tolist()
    return [Piece(i * gpus // replicas, e, load[e] / counts[e]) for i, e in enumerate(experts[0].tolist())]


def loads_of(pieces: list[Piece], gpus: int) -> list[float]:
    return [sum(piece.load for piece in pieces if piece.gpu == gpu) for gpu in range(gpus)]


def over_mean(pieces: list[Piece], gpus: int) -> float:
    """Return the load of the busiest GPU over the mean of all."""
    loads = loads_of(pieces, gpus)
    return max(loads) * gpus / sum(loads)


def listed(pieces: list[Piece], gpus: int) -> str:
    """Say which experts each GPU has."""
    return "Experts on each GPU: " + "; ".join(
        f"{gpu}: {', '.join(str(piece.expert) for piece in pieces if piece.gpu == gpu)}" for gpu in range(gpus)
    )


@styled()
def draw_placement(load: Sequence[float] | Tensor, replicas: int, groups: int, nodes: int, gpus: int) -> Picture:
    """Draw each GPU's load by expert: experts in order without replicas, and EPLB's placement of so many replicas.

    Experts with several replicas have a colour, which stays theirs when `replicas` changes. Raises ValueError as
    `rebalance_experts` does, and for loads of 0 only.
    """
    load = torch.as_tensor(load).tolist()
    by_eplb(load, replicas, groups, nodes, gpus)  # refuses what cannot be placed
    require("load", load, sum(load) > 0, "above 0 for one expert")
    load = [one * gpus / sum(load) for one in load]  # over the mean of the GPUs
    before, after = in_order(load, gpus), by_eplb(load, replicas, groups, nodes, gpus)
    fewest = by_eplb(load, -(-len(load) // gpus) * gpus, groups, nodes, gpus)
    top = max(max(loads_of(pieces, gpus)) for pieces in (before or fewest, fewest, after))
    heaviest = sorted(range(len(load)), key=lambda expert: -load[expert])
    colors = {expert: REPLICATED[i % len(REPLICATED)] for i, expert in enumerate(heaviest)}
    several = {p.expert for p in after if sum(other.expert == p.expert for other in after) > 1}
    fig = new_figure(height=4.4)
    for column, (pieces, words) in enumerate(
        ((before, "experts in order, no replicas"), (after, f"EPLB, {replicas} replicas of {len(load)} experts"))
    ):
        ax = fig.add_axes((0.085 + 0.475 * column, 0.16, 0.415, 0.61))
        ax.set(xlim=(-0.75, _x(gpus - 1, nodes, gpus) + 0.75), ylim=(0, 1.12 * top))
        _name_gpus(ax, nodes, gpus)
        if pieces:
            _draw(ax, pieces, {e: colors[e] if e in several else PALE for e in colors}, nodes, gpus)
        else:
            said = f"{len(load)} experts cannot be\ndivided evenly over {gpus} GPUs"
            ax.text(0.5, 0.6, said, transform=ax.transAxes, ha="center", va="center", size=12, color=MUTED)
        ax.axhline(1, color=INK, linewidth=1.2, linestyle=DASHED, zorder=4)
        ax.set_title(words, size=12, pad=8)
        if column:
            ax.tick_params(labelleft=False)
        else:
            ax.set_ylabel("load over the mean", size=11)
            label(ax, "mean", (ax.get_xlim()[1], 1), (3, 0), size=10)
    end = over_mean(after, gpus)
    if before:
        finding = (
            f"Busiest GPU over the mean: {over_mean(before, gpus):.2f} in order, {end:.2f} with {replicas} replicas"
        )
    else:
        finding = f"With {replicas} replicas, the busiest of {gpus} GPUs has {end:.2f} times the mean load"
    fig.title(finding, y=0.91)
    fig.note(0.085, 0.025, "in the bars: experts; coloured: those with several replicas, which share the load", size=10)
    fig.alt = f"{finding}. {listed(after, gpus)}"
    return fig


def _x(gpu: int, nodes: int, gpus: int) -> float:
    """Return where a GPU's bar stands, with space between nodes."""
    return gpu + 0.5 * (gpu * nodes // gpus)


def _name_gpus(ax: Axes, nodes: int, gpus: int) -> None:
    """Number the GPUs, as many as have room, and the nodes below them."""
    step = -(-gpus // 16)
    shown = range(0, gpus, step)
    name_ticks(ax, "x", [f"{gpu}" for gpu in shown], [_x(gpu, nodes, gpus) for gpu in shown])
    ax.tick_params(labelsize=11)
    ax.tick_params(axis="x", labelsize=10, pad=2)
    ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    for node in range(nodes) if nodes <= 8 else ():
        middle = (_x(node * gpus // nodes, nodes, gpus) + _x((node + 1) * gpus // nodes - 1, nodes, gpus)) / 2
        said = "GPU" if nodes == 1 else f"{'GPUs of ' * (nodes < 4)}node {node}"
        ax.text(middle, -0.12, said, transform=ax.get_xaxis_transform(), ha="center", va="center", size=11)


def _draw(ax: Axes, pieces: list[Piece], colors: dict[int, str], nodes: int, gpus: int) -> None:
    """Draw stacked bars, with the experts' numbers where they fit, and the busiest GPU's load over the mean."""
    place, (width, height) = ax.get_position(), ax.figure.get_size_inches() * PT_PER_INCH
    wide = 0.84 * width * place.width / (ax.get_xlim()[1] - ax.get_xlim()[0])  # points
    unit = height * place.height / ax.get_ylim()[1]
    floor, boxes, digits = [0.0] * gpus, [], len(f"{len(colors) - 1}")
    for gpu, expert, load in pieces:
        x, low = _x(gpu, nodes, gpus), floor[gpu]
        floor[gpu] += load
        boxes.append([(x - 0.42, low), (x + 0.42, low), (x + 0.42, floor[gpu]), (x - 0.42, floor[gpu])])
        size, middle = min(11, wide / (0.66 * digits), 0.9 * load * unit), low + load / 2
        if size >= SMALLEST:
            text = ax.text(x, middle, f"{expert}", size=size, ha="center", va="center_baseline", zorder=5,
                           color=readable_on(colors[expert]))  # fmt: skip
            if abs(middle - 1) * unit < size:  # the line of the mean does not cross it
                text.set_bbox({"facecolor": colors[expert], "edgecolor": "none", "pad": 0.5})
    faces, line = [colors[piece.expert] for piece in pieces], 1 if wide > 12 else 0.5
    ax.add_collection(PolyCollection(boxes, facecolors=faces, edgecolors=PAPER, linewidths=line), autolim=False)
    most = max(floor)
    busiest = floor.index(most)
    label(ax, f"{over_mean(pieces, gpus):.2f}×", (_x(busiest, nodes, gpus), most), (0, 3), weight="bold")
