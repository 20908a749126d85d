"""How long each way to run the experts takes, over their number."""

from __future__ import annotations

import numpy as np

from minids.book.plots.helpers import label_ends, log_scale
from minids.book.plots.style import INK, LAYERS, Picture, new_figure, styled
from minids.book.probes.expert_products import OURS

WAY_COLORS = {"masks": LAYERS[2], "padded": LAYERS[1], "grouped": LAYERS[4]}


@styled()
def draw_products(measured: list[dict]) -> Picture:
    """Draw how long each way to run the experts takes, relative to sorted rows with one product per expert.

    `measured` is what products.measure returns. A line is the median of the rounds, a band their middle half.
    """
    fig = new_figure(height=4.4)
    routings = list(dict.fromkeys(row["routing"] for row in measured))
    times, loads = {}, {}
    top = 1.1 * max(
        np.quantile(np.divide(row["milliseconds"][way], row["milliseconds"][OURS]), 0.75)
        for row in measured for way in row["milliseconds"]
    )  # fmt: skip
    for routing, left in zip(routings, (0.075, 0.56), strict=True):
        rows = [row for row in measured if row["routing"] == routing]
        experts, loads[routing] = [row["experts"] for row in rows], [row["busiest"] for row in rows]
        ax = fig.add_axes((left, 0.17, 0.3, 0.53))
        ax.axhline(1, color=INK, linewidth=1.5)
        ends = {"sorted": (1.0, INK)}
        for way, color in WAY_COLORS.items():
            if way in rows[0]["milliseconds"]:
                ratios = [np.divide(row["milliseconds"][way], row["milliseconds"][OURS]) for row in rows]
                low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75), axis=1)
                ax.fill_between(experts, low, high, color=color, alpha=0.2, linewidth=0)
                ax.plot(experts, middle, "o-", color=color, markersize=4)
                times[routing, way] = middle[-1]
                ends[f"{way} {middle[-1]:.1f}"] = (middle[-1], color)
        log_scale(ax, "x", "{:.0f}".format, experts, base=2)
        ax.set(xlim=(experts[0], experts[-1]), ylim=(0, top), xlabel="experts")
        ax.yaxis.set_major_formatter("{x:g}×")
        label_ends(ax, ends, gap=0.085 * top, lowest=0.03 * top, shift=6, size=11)
        first, last = loads[routing][0], loads[routing][-1]
        fig.note(left - 0.05, 0.74, f"{routing} routing: busiest expert {first:.1f} to {last:.1f} × average")
    fig.note(
        0.025, 0.815, "time relative to sorted rows with one product per expert; median, band: middle half of rounds"
    )
    at_end = {way: [found for (_, name), found in times.items() if name == way] for way in WAY_COLORS}
    masks, padding = (" / ".join(f"{found:.1f}" for found in at_end[way]) for way in ("masks", "padded"))
    fig.title(f"At {experts[-1]} experts ({' / '.join(routings)}) masks take {masks} × sorting’s time, "
              f"padding {padding}", y=0.9)  # fmt: skip
    fig.alt = (
        f"Four ways to run a layer of {experts[0]} to {experts[-1]} experts, with equal work. "
        + "; ".join(f"{routing}: the busiest expert has {load[0]:.1f} to {load[-1]:.1f} times the average load, so "
                    "padding computes as many times more rows" for routing, load in loads.items())
    )  # fmt: skip
    return fig
