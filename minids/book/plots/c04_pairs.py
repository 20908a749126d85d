"""Which experts of a trained model are chosen together."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from minids.book.plots.helpers import name_ticks
from minids.book.plots.style import (
    INK,
    Picture,
    new_figure,
    styled,
)
from minids.book.plots.tokens import MONO, SIZE, spoken, visible
from minids.book.probes.specialists import (
    Observed,
    expected_pairs,
    pairs,
    pairs_of_group_limit,
    typical_of_pair,
    within_groups,
)

NUMBERS = 24  # of experts that stand beside a table at most
DIVERGING, SPAN = "PuOr_r", 2.5  # of pairs: powers of two above and below 1
OFTEN = 0.02  # of all tokens: pairs that are named


@styled()
def draw_pairs(observed: Observed, layer: int = 1) -> Picture:
    """Draw how often two experts of a layer are chosen for the same token, relative to two expectations.

    Left: if experts were chosen independently, each as often as it is. Right: if, besides, every two groups had as many
    pairs as they have (`expected_pairs`). Where tokens are limited to some groups, experts of one group are chosen
    together more often for this reason alone: that is left in the left picture and taken out of the right one.
    """
    counts, groups = pairs(observed, layer), observed.config.n_group
    free, grouped = (expected_pairs(counts, number) for number in (1, groups))
    fig = new_figure(height=6.3)
    notes = ("relative to independent choices", "and with the effect of the groups taken out")
    for left, expected, note in zip((0.09, 0.52), (free, grouped), notes, strict=True):
        ax = fig.add_axes((left, 0.25, 0.385, 0.55))
        image = _table(ax, counts, expected, groups)
        ax.tick_params(axis="y", labelleft=left < 0.5)
        fig.note(left, 0.815, note)
    bar = fig.colorbar(image, cax=fig.add_axes((0.925, 0.25, 0.014, 0.55)))
    bar.ax.set_yticks([-2, -1, 0, 1, 2], ["¼", "½", "1", "2", "4"])
    bar.outline.set_visible(False)
    strong = _strongest(counts, grouped, observed.tokens.size)
    texts = {pair: [observed.spelled[token] for token in typical_of_pair(observed, layer, pair, 8)] for pair in strong}
    shares = {pair: counts[pair] / observed.tokens.size for pair in strong}
    _list(fig, strong, shares, texts)
    inside = within_groups(counts, groups)
    more, alone = counts[inside].sum() / free[inside].sum(), pairs_of_group_limit(observed.config)
    limit = f"the group limit alone gives {alone:.1f}"
    fig.title(f"MoE layer {layer}: pairs within groups are {more:.1f} times chance; {limit}", y=0.94)
    kept = f"{observed.config.topk_group} of {groups}"
    fig.note(0.02, 0.895, f"how often two experts are chosen for one token, from {kept} groups of experts", size=11)
    fig.alt = (
        f"MoE layer {layer}, {kept} groups kept for a token: two experts of a group are chosen together {more:.1f} "
        f"times as often as if choices were independent; if all were random within the groups kept, {alone:.1f} times. "
        "Beyond the groups: " + ("; ".join(
            f"{pair[0]} and {pair[1]} {ratio:.1f} times as often as expected, for {', '.join(map(spoken, texts[pair]))}"
            for pair, ratio in strong.items()
        ) or "no frequent pair is chosen more often than expected")
    )  # fmt: skip
    return fig


def _table(ax: Axes, counts: np.ndarray, expected: np.ndarray, groups: int) -> AxesImage:
    """Draw how many times as often as expected each pair is chosen; lines stand between the groups."""
    ax.set_facecolor("#A5A9B0")
    times = np.divide(counts, expected, out=np.full_like(counts, np.nan), where=expected > 0)
    np.fill_diagonal(times, np.nan)
    shown = np.ma.masked_invalid(np.log2(np.clip(times, 2**-SPAN, 2**SPAN)))
    image = ax.imshow(shown, cmap=DIVERGING, vmin=-SPAN, vmax=SPAN, interpolation="nearest")
    size = len(counts) // groups
    for edge in np.arange(size, len(counts), size) - 0.5:
        ax.axhline(edge, color=INK, linewidth=0.8)
        ax.axvline(edge, color=INK, linewidth=0.8)
    numbered = range(0, len(counts), -(-len(counts) // NUMBERS))
    for axis in "xy":
        name_ticks(ax, axis, list(map(str, numbered)), numbered)
    ax.tick_params(labelsize=10)
    ax.tick_params(axis="x", labelrotation=90)
    ax.spines[:].set_visible(False)
    return image


def _list(fig: Picture, ratios: dict, shares: dict, texts: dict) -> None:
    """Write a line for each of the strongest pairs."""
    fig.note(
        0.02, 0.17, "strongest pairs of the right picture: observed / expected, share of all tokens, typical tokens"
    )
    for i, (pair, ratio) in enumerate(ratios.items()):
        y = 0.125 - 0.042 * i
        fig.text(0.02, y, f"{pair[0]} and {pair[1]}", size=11)
        fig.text(0.2, y, f"{ratio:.1f}×", size=11, ha="right")
        fig.text(0.26, y, f"{shares[pair]:.0%}", size=11, ha="right")
        fig.text(0.29, y, "  ".join(map(visible, texts[pair]))[:64], size=SIZE, **MONO)


def _strongest(counts: np.ndarray, expected: np.ndarray, n_tokens: int) -> dict[tuple[int, int], float]:
    """Return up to three pairs that are more frequent than expected, with the ratio, the highest first.

    Of the pairs on 2% of all tokens or more.
    """
    upper = np.triu(counts >= OFTEN * n_tokens)
    ratios = np.divide(counts, expected, out=np.zeros_like(counts), where=upper)
    best = np.argsort(-ratios, axis=None, kind="stable")[:3]
    places = zip(*np.unravel_index(best, counts.shape), strict=True)
    return {(int(a), int(b)): float(ratios[a, b]) for a, b in places if ratios[a, b] > 1}
