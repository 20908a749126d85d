"""Four curves of growth: what a step costs, and what it keeps in memory, measured and predicted."""

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from minids.book.plots.helpers import log_scale
from minids.book.plots.style import DOMAINS, INK, MUTED, Picture, new_figure, styled
from minids.units import in_k, in_unit

AXES = {
    "experts": "experts, 8 used",
    "context": "context, decoding",
    "batch": "rows, training",
    "layers": "layers",
}
MEASURED = DOMAINS["prose"]


@styled()
def draw_growth(curves: list[dict]) -> Picture:
    """Draw each curve's time above and its memory below; measured as a line, predicted dashed, scales in doublings."""
    fig = new_figure(height=7)
    said = []
    for column, curve in enumerate(curves):
        points = curve["points"]
        values = [point["value"] for point in points]
        times = [p["time"]["median_ms"] for p in points], [p["predicted_ms"] for p in points]
        sizes = [p["bytes"] for p in points], [p["predicted_bytes"] for p in points]
        for bottom, show, (measured, predicted) in ((0.59, _milliseconds, times), (0.16, _bytes, sizes)):
            ax = fig.add_axes((0.085 + 0.237 * column, bottom, 0.168, 0.27))
            ax.plot(values, predicted, color=MUTED, linestyle=(0, (3, 2)), linewidth=1.4)
            ax.plot(values, measured, "o-", color=MEASURED, markersize=4)
            at = values.index(curve["anchor"])
            ax.plot(values[at], measured[at], "o", color="white", markeredgecolor=MEASURED, markersize=7, zorder=3)
            _in_doublings(ax, values, [*measured, *predicted], show)
            ax.set_title(_finding(measured, predicted), size=11.5, color=INK, pad=6)
            ax.tick_params(labelsize=11, labelbottom=bottom < 0.5)
            if bottom < 0.5:
                ax.set_xlabel(AXES[curve["curve"]], size=11.5)
        grown, expected = (line[-1] / line[0] for line in times)
        said.append(
            f"{curve['curve']} from {values[0]} to {values[-1]}: {grown:.1f} times the time, predicted {expected:.1f}"
        )
    fig.title("Time of a step", y=0.935)
    fig.title("Memory it takes", y=0.495)
    fig.note(0.02, 0.02, "line: measured   dashed: predicted from the ring on, by counting operations and numbers kept")
    fig.alt = "Growth of a step, measured. " + "; ".join(said) + "."
    return fig


def _finding(measured: list[float], predicted: list[float]) -> str:
    """Return what became of the measured quantity over the whole curve, and of the predicted one."""
    grown = (measured[-1] / measured[0], predicted[-1] / predicted[0])
    return ", counted ".join(f"× {times:.1f}" if times < 10 else f"× {times:.0f}" for times in grown)


def _in_doublings(ax: Axes, values: list[int], heights: list[float], show: Callable[[float], str]) -> None:
    """Make both axes logarithmic; the vertical one spans a factor of 5 at least, so that noise looks like noise."""
    log_scale(ax, "x", in_k, values[:: -1 if len(values) < 5 else -2], base=2)
    log_scale(ax, "y", show)
    middle = (min(heights) * max(heights)) ** 0.5
    reach = max(max(heights) / middle * 1.25, 5**0.5)
    ax.set_ylim(middle / reach, middle * reach)
    ax.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if reach < 6 else (1,)))


def _milliseconds(value: float) -> str:
    return "{:.0f} {}".format(*in_unit(value, 1000, ("ms", "s")))


def _bytes(value: float) -> str:
    return "{:.0f} {}".format(*in_unit(value / 1e6, 1000, ("MB", "GB")))
