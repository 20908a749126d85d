"""The pictures of recorded experiments: the scores of each arm, seed by seed."""

from __future__ import annotations

import statistics
from itertools import groupby

import numpy as np
from matplotlib.ticker import FixedLocator, MaxNLocator

from minids.book.plots.c03_latent import KIND_COLORS
from minids.book.plots.helpers import label, label_ends, log_scale, name_ticks
from minids.book.plots.style import INK, LAYERS, MUTED, PALE, Picture, new_figure, styled
from minids.book.recorded import cached_per_layer, model_of, scores_of
from minids.cost.cache import attention_kind


@styled()
def draw_attention_ablation(result: dict) -> Picture:
    """Draw held-out bits per byte of each arm of the recorded attention experiment, arms of equal cache side by side.

    A dot is a seed, the bar their mean, and the whisker spans best to worst seed.
    """
    cached = {arm: cached_per_layer(result, arm) for arm in result["arms"]}
    scores = {arm: scores_of(result, arm) for arm in sorted(cached, key=lambda arm: -cached[arm])}
    means = {arm: statistics.mean(values) for arm, values in scores.items()}
    seeds = len(result["seeds"])
    fig = new_figure(height=4.5)
    ax = fig.add_axes((0.1, 0.2, 0.88, 0.62))
    x, places = 0.0, []
    for numbers, group in groupby(scores, key=cached.get):
        begins = x
        for arm in group:
            values, mean = scores[arm], means[arm]
            color = KIND_COLORS[attention_kind(model_of(result, arm))]
            ax.plot([x, x], [min(values), max(values)], color=color, linewidth=1.5)
            ax.plot([x - 0.2, x + 0.2], [mean, mean], color=color, linewidth=3, solid_capstyle="butt")
            ax.plot([x] * len(values), values, "o", color=color, markersize=5)
            label(ax, f"{mean:.3f}", (x + 0.24, mean), (2, 0), color=color)
            places.append(x)
            x += 1
        middle, across = (begins + x - 1) / 2, ax.get_xaxis_transform()
        ax.text(middle, -0.27, f"{numbers} cached", transform=across, ha="center", size=11, color=MUTED)
        x += 0.5
    ax.set(xlim=(-0.6, x - 0.7), ylabel="held-out bits per byte")
    ax.margins(y=0.15)
    name_ticks(ax, "x", [arm.replace(" ", "\n", 1) for arm in scores], places)
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:.3f}")
    apart = max(means.values()) / min(means.values()) - 1
    within = max(max(values) / min(values) - 1 for values in scores.values())
    fig.title(_ahead(scores, cached) or f"No arm is ahead of those with an equal cache in every one of {seeds} seeds")
    fig.note(0.1, 0.845, f"a dot is one of {seeds} seeds, a bar their mean; all arms lie within {apart:.1%}, "
             f"seeds of one arm within {within:.1%}")  # fmt: skip
    fig.alt = f"Held-out bits per byte of prose and code, means of {seeds} seeds. " + "; ".join(
        f"{arm}: {cached[arm]} cached, {means[arm]:.3f} ({min(values):.3f} to {max(values):.3f})"
        for arm, values in scores.items()
    )
    return fig


def _ahead(scores: dict[str, list[float]], cached: dict[str, int]) -> str | None:
    """Return the title where one arm is ahead, seed by seed, of all others that cache as many numbers."""
    for numbers in sorted(set(cached.values())):
        group = {arm: values for arm, values in scores.items() if cached[arm] == numbers}
        best = min(group, key=lambda arm: statistics.mean(group[arm]))
        others = [arm for arm in group if arm != best]
        if others and all(
            by_seed[0] < min(by_seed[1:]) for by_seed in zip(group[best], *map(group.get, others), strict=True)
        ):
            return f"At {numbers} cached numbers {best} is ahead of {' and '.join(others)} in every seed"
    return None


@styled()
def draw_low_rank(result: dict, arm: str = "MHA") -> Picture:
    """Draw the singular values of a trained model's keys and values, and the cost of cutting them to a rank."""
    measured = [row["measured"] for row in result["runs"] if row["arm"] == arm]
    ranks = sorted(int(rank) for rank in measured[0]["bits_per_byte"] if rank.isdigit())
    costs = np.array([[m["bits_per_byte"][str(r)] - m["bits_per_byte"]["as trained"] for r in ranks] for m in measured])
    hidden = model_of(result, arm).hidden_size
    values = np.array(measured[0]["singular_values"])[:, :hidden]
    values /= values[:, :1]
    colors = [LAYERS[layer % len(LAYERS)] for layer in range(len(values))]
    fig = new_figure(height=4.1)
    left = fig.add_axes((0.09, 0.17, 0.33, 0.62))
    for line, color in zip(values, colors, strict=True):
        left.plot(range(1, hidden + 1), line, color=color, linewidth=1.6)
    bottom, top = np.log10(values[:, -1].min()) - 0.1, 0.1
    log_scale(left, "y", "{:g}".format)
    left.set(xlim=(1, hidden), ylim=(10**bottom, 10**top), xlabel="singular value number")
    left.xaxis.set_major_locator(FixedLocator([1, *range(64, hidden + 1, 64)]))
    ends = {f"layer {i}": (line[-1], color) for i, (line, color) in enumerate(zip(values, colors, strict=True))}
    gap = 0.085 * (top - bottom)
    label_ends(left, ends, gap, lowest=bottom + gap / 2, shift=5, size=10)
    fig.note(0.02, 0.82, "singular values, relative to the largest")
    right = fig.add_axes((0.62, 0.17, 0.35, 0.62))
    for line in costs:
        right.plot(ranks, line, "o-", color=INK, linewidth=1.2, markersize=3.5)
    right.set(xlim=(0, hidden + 4), xlabel="rank left in each layer")
    right.set_ylim(bottom=-0.03 * costs.max())
    right.axhline(0, color=PALE, linewidth=1, zorder=0)
    right.xaxis.set_major_locator(FixedLocator(range(0, hidden + 1, 64)))
    right.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    fig.note(0.55, 0.82, "bits per byte lost")
    lost = dict(zip(ranks, costs.mean(axis=0), strict=True))
    third = min(ranks, key=lambda rank: abs(rank - hidden / 3))
    fig.title(f"Keys and values cut to rank {third} of {hidden} cost a trained model {lost[third]:.3f} bits per byte")
    fig.alt = f"{arm}, {len(measured)} seeds: bits per byte lost when keys and values are cut to rank " + ", ".join(
        f"{rank}: {cost:.3f}" for rank, cost in lost.items()
    )
    return fig
