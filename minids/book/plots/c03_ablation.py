"""The pictures of recorded experiments: what each arm reached, seed by seed."""

from __future__ import annotations

import statistics
from itertools import groupby

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from minids.book.experiments.recorded import reports_of
from minids.book.plots.c03_latent import KIND_COLORS
from minids.book.plots.style import INK, LAYERS, MUTED, PALE, PARTS, Picture, new_figure, spread, styled
from minids.cost.accounting import attention_kind, kv_cache_elements
from minids.model.config import ModelConfig


def scores(result: dict, arm: str) -> list[float]:
    """Return the held-out bits per byte of prose and code together of each run of an arm, in the order of the seeds."""
    return [report["bits_per_byte"]["prose_and_code"] for report in reports_of(result, arm)]


def cached_per_layer(result: dict, arm: str) -> int:
    """Return the numbers that an arm's model caches per token and layer."""
    config = ModelConfig.from_hf(result["arms"][arm]["model"])
    return kv_cache_elements(config) // config.num_hidden_layers


def draw_attention_ablation(result: dict) -> Picture:
    """Draw held-out bits per byte of each arm of the recorded attention experiment, arms of equal cache side by side.

    A dot is a seed, the bar their mean, and the whisker reaches from the best seed to the worst.
    """
    arms = sorted(result["arms"], key=lambda arm: -cached_per_layer(result, arm))
    means = {arm: statistics.mean(scores(result, arm)) for arm in arms}
    seeds = len(result["seeds"])
    with styled():
        fig = new_figure(height=4.5)
        ax = fig.add_axes((0.1, 0.2, 0.88, 0.62))
        x, ticks, centres = 0.0, [], []
        for cached, group in groupby(arms, key=lambda arm: cached_per_layer(result, arm)):
            begins = x
            for arm in group:
                values = scores(result, arm)
                color = KIND_COLORS[attention_kind(ModelConfig.from_hf(result["arms"][arm]["model"]))]
                ax.plot([x, x], [min(values), max(values)], color=color, linewidth=1.5)
                ax.plot([x - 0.2, x + 0.2], [means[arm]] * 2, color=color, linewidth=3, solid_capstyle="butt")
                ax.plot([x] * len(values), values, "o", color=color, markersize=5)
                ax.annotate(f"{means[arm]:.3f}", (x + 0.24, means[arm]), (2, 0), textcoords="offset points",
                            va="center", size=11, color=color)  # fmt: skip
                ticks.append((x, arm.replace(" ", "\n", 1)))
                x += 1
            centres.append(((begins + x - 1) / 2, cached))
            x += 0.5
        ax.set(xlim=(-0.6, x - 0.7), ylabel="held-out bits per byte")
        ax.margins(y=0.15)
        ax.set_xticks([at for at, _ in ticks], [name for _, name in ticks])
        ax.tick_params(axis="x", length=0, labelcolor=INK, labelsize=12)
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.3f}"))
        for middle, cached in centres:
            ax.text(
                middle, -0.27, f"{cached} cached", transform=ax.get_xaxis_transform(), ha="center", size=11, color=MUTED
            )
        apart = max(means.values()) / min(means.values()) - 1
        within = max(max(values) / min(values) - 1 for values in (scores(result, arm) for arm in arms))
        title = f"Arms lie within {apart:.1%} of each other, seeds of one arm within {within:.1%}"
        fig.text(0.02, 0.92, title, size=14)
        fig.text(0.1, 0.845, f"numbers cached per token and layer; a dot is one of {seeds} seeds, a bar their mean",
                 size=11, color=MUTED)  # fmt: skip
    fig.alt = f"Held-out bits per byte of prose and code, means of {seeds} seeds. " + "; ".join(
        f"{arm}: {cached_per_layer(result, arm)} cached, {means[arm]:.3f} "
        f"({min(scores(result, arm)):.3f} to {max(scores(result, arm)):.3f})"
        for arm in arms
    )
    return fig


def draw_low_rank(result: dict, arm: str = "MHA") -> Picture:
    """Draw the singular values of a trained model's keys and values, and what cutting them to a rank costs it."""
    measured = [row["measured"] for row in result["runs"] if row["arm"] == arm]
    ranks = sorted(int(rank) for rank in measured[0]["bits_per_byte"] if rank.isdigit())
    costs = np.array([[m["bits_per_byte"][str(r)] - m["bits_per_byte"]["as trained"] for r in ranks] for m in measured])
    values = np.array(measured[0]["singular_values"])
    hidden = result["arms"][arm]["model"]["hidden_size"]
    with styled():
        fig = new_figure(height=4.1)
        left = fig.add_axes((0.09, 0.17, 0.33, 0.62))
        for layer, line in enumerate(values[:, :hidden]):
            left.plot(range(1, hidden + 1), line / line[0], color=LAYERS[layer % len(LAYERS)], linewidth=1.6)
        ends = {f"layer {i}": np.log10(line[hidden - 1] / line[0]) for i, line in enumerate(values)}
        bottom, top = np.log10(values[:, hidden - 1] / values[:, 0]).min() - 0.1, 0.1
        left.set_ylim(10**bottom, 10**top)
        gap = 0.085 * (top - bottom)
        for name, height in spread(ends, gap=gap, lowest=bottom + gap / 2).items():
            left.annotate(name, (hidden, 10**height), (5, 0), textcoords="offset points", va="center", size=10,
                          color=LAYERS[int(name.split()[1]) % len(LAYERS)], annotation_clip=False)  # fmt: skip
        left.set_yscale("log")
        left.set(xlim=(1, hidden), xlabel="singular value number")
        left.yaxis.set_minor_locator(NullLocator())
        left.xaxis.set_major_locator(FixedLocator([1, *range(64, hidden + 1, 64)]))
        left.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        fig.text(0.02, 0.82, "singular values, of the largest", size=11, color=MUTED)
        right = fig.add_axes((0.62, 0.17, 0.35, 0.62))
        for line in costs:
            right.plot(ranks, line, "o-", color=PARTS["rope"], linewidth=1.2, markersize=3.5)
        right.set(xlim=(0, hidden + 4), xlabel="rank left in each layer")
        right.set_ylim(bottom=-0.03 * costs.max())
        right.axhline(0, color=PALE, linewidth=1, zorder=0)
        right.xaxis.set_major_locator(FixedLocator(range(0, hidden + 1, 64)))
        right.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        fig.text(0.55, 0.82, "bits per byte lost", size=11, color=MUTED)
        third = int(np.argmin(np.abs(np.array(ranks) - hidden / 3)))
        lost = costs.mean(axis=0)[third]
        title = f"Keys and values cut to rank {ranks[third]} of {hidden} cost a trained model {lost:.3f} bits per byte"
        fig.text(0.02, 0.92, title, size=14)
    fig.alt = f"{arm}, {len(measured)} seeds: bits per byte lost when keys and values are cut to rank " + ", ".join(
        f"{rank}: {cost:.3f}" for rank, cost in zip(ranks, costs.mean(axis=0), strict=True)
    )
    return fig
