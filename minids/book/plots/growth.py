"""Four curves of growth: what a step costs, and what it keeps in memory, measured and predicted."""

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from minids.book.plots.style import DOMAINS, INK, MUTED, new_figure, styled

AXES = {
    "experts": "experts, 8 used",
    "context": "context, decoding",
    "batch": "rows, training",
    "layers": "layers",
}
MEASURED = DOMAINS["prose"]


def draw_growth(curves: list[dict]) -> Figure:
    """Draw each curve's time above and its memory below; measured as a line, predicted dashed, scales in doublings."""
    with styled():
        fig = new_figure(height=7)
        said = []
        for column, curve in enumerate(curves):
            points, anchor = curve["points"], curve["anchor"]
            values = [point["value"] for point in points]
            left = 0.085 + 0.237 * column
            rows = {
                0.59: ([p["time"]["median_ms"] for p in points], [p["predicted_ms"] for p in points], _milliseconds),
                0.16: ([p["bytes"] for p in points], [p["predicted_bytes"] for p in points], _bytes),
            }
            for bottom, (measured, predicted, show) in rows.items():
                ax = fig.add_axes((left, bottom, 0.168, 0.27))
                ax.plot(values, predicted, color=MUTED, linestyle=(0, (3, 2)), linewidth=1.4)
                ax.plot(values, measured, "o-", color=MEASURED, markersize=4)
                at = values.index(anchor)
                ax.plot(anchor, measured[at], "o", color="white", markeredgecolor=MEASURED, markersize=7, zorder=3)
                _in_doublings(ax, values, [*measured, *predicted], show)
                ax.set_title(_finding(values, measured, predicted), size=11.5, color=INK, pad=6)
                if bottom > 0.5:
                    ax.tick_params(labelbottom=False)
                else:
                    ax.set_xlabel(AXES[curve["curve"]], size=11.5)
            times = rows[0.59][0]
            said.append(
                f"{curve['curve']} from {values[0]} to {values[-1]}: {times[-1] / times[0]:.1f} times the time, "
                f"predicted {rows[0.59][1][-1] / rows[0.59][1][0]:.1f}"
            )
        fig.text(0.02, 0.935, "Time of a step", size=14, color=INK)
        fig.text(0.02, 0.495, "Memory it takes", size=14, color=INK)
        legend = "line: measured   dashed: predicted from the ring on, by counting operations and numbers kept"
        fig.text(0.02, 0.02, legend, size=11, color=MUTED)
    fig.alt = "Growth of a step, measured. " + "; ".join(said) + "."
    return fig


def _finding(values: list[int], measured: list[float], predicted: list[float]) -> str:
    """What became of the measured quantity over the whole curve, and of the predicted one."""
    grown = (measured[-1] / measured[0], predicted[-1] / predicted[0])
    return ", counted ".join(f"× {times:.1f}" if times < 10 else f"× {times:.0f}" for times in grown)


def _in_doublings(ax, values: list[int], heights: list[float], show) -> None:
    """Set both axes to logarithms; the upright one spans a factor of five at least, so that noise looks like noise."""
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(FixedLocator(values[:: -1 if len(values) < 5 else -2]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}" if x < 1024 else f"{x / 1024:.0f}K"))
    middle = (min(heights) * max(heights)) ** 0.5
    reach = max(max(heights) / middle * 1.25, 5**0.5)
    ax.set_ylim(middle / reach, middle * reach)
    ax.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if reach < 6 else (1,)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: show(y)))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
    ax.tick_params(labelsize=11)


def _milliseconds(value: float) -> str:
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.0f} s"


def _bytes(value: float) -> str:
    return f"{value / 1e6:.0f} MB" if value < 1e9 else f"{value / 1e9:.0f} GB"
