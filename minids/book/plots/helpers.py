"""What many pictures do: label points and the ends of lines, name ticks, keep logarithmic axes bare, and draw runs."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import Transform, blended_transform_factory

from minids.book.plots.style import INK

DASHED = (0, (4, 3))  # a line style: dash and gap, in widths of the line
OFFSETS = np.array([-0.24, -0.08, 0.08, 0.24])  # of an arm's runs: equal seeds stand at equal heights in all rows


def label(ax: Axes, text: str, at: tuple[float, float], shift: tuple[float, float], **how) -> None:
    """Write a text beside a point, `shift` in points from it: (4, 0) to its right, (0, 9) above it."""
    align = {"ha": "center"} if shift[1] else {"va": "center"}
    ax.annotate(text, at, shift, textcoords="offset points", annotation_clip=False, **{"size": 11, **align, **how})


def label_ends(
    ax: Axes, ends: dict[str, tuple[float, str]], gap: float, lowest: float = -math.inf, *,
    x: float | None = None, shift: float = 8, size: float = 12,
) -> None:  # fmt: skip
    """Label lines where they end: `ends` maps each label to the height of its line and its colour.

    Labels stand at `x`, by default the right edge of the axes, and are moved apart by `spread`. On a logarithmic
    axis `gap` and `lowest` are in decades.
    """
    log = ax.get_yscale() == "log"
    heights = {text: math.log10(height) if log else height for text, (height, _) in ends.items()}
    for text, height in spread(heights, gap, lowest).items():
        at = (ax.get_xlim()[1] if x is None else x, 10**height if log else height)
        label(ax, text, at, (shift, 0), size=size, color=ends[text][1])


def spread(heights: dict[str, float], gap: float, lowest: float) -> dict[str, float]:
    """Move labels apart until neighbours are `gap` from each other, keeping their order and, roughly, their middle.

    No label is placed below `lowest`.
    """
    placed: dict[str, float] = {}
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        placed[name] = max([height, *(other + gap for other in placed.values())])
    shift = (sum(placed.values()) - sum(heights.values())) / len(placed)
    shift = min(shift, min(placed.values()) - lowest)
    return {name: height - shift for name, height in placed.items()}


def log_scale(
    ax: Axes, axis: str, show: Callable[[float], str], ticks: Sequence[float] | None = None, base: int = 10
) -> None:
    """Make the "x" or "y" axis logarithmic, with ticks at `ticks` (None: at powers) that read as `show` says."""
    getattr(ax, f"set_{axis}scale")("log", base=base)
    one = getattr(ax, f"{axis}axis")
    if ticks is not None:
        one.set_major_locator(FixedLocator(ticks))
    one.set_minor_locator(NullLocator())
    one.set_major_formatter(lambda value, _: show(value))


def name_ticks(ax: Axes, axis: str, names: Sequence[str], places: Sequence[float] | None = None) -> None:
    """Write names along the "x" or "y" axis, at 0, 1, 2, … or at `places`, without tick marks."""
    getattr(ax, f"set_{axis}ticks")(range(len(names)) if places is None else places, names)
    ax.tick_params(axis=axis, length=0, labelcolor=INK, labelsize=12)


def across(ax: Axes) -> Transform:
    """Return the transform to places on the whole picture from left to right, and rows of the axes."""
    return blended_transform_factory(ax.figure.transFigure, ax.transData)


def write_row(ax: Axes, row: float, texts: dict[float, str], **how) -> None:
    """Write texts into a row of a picture, each at its place from left to right, where it ends by default."""
    for x, text in texts.items():
        ax.text(x, row, text, transform=across(ax), **{"size": 11, "ha": "right", "va": "center", **how})


def draw_runs(ax: Axes, row: float, values: np.ndarray, color: str) -> None:
    """Draw an arm's runs as dots, their range as a line and their mean as a bar."""
    ax.plot([values.min(), values.max()], [row, row], color=color, linewidth=1.2)
    ax.plot([values.mean()] * 2, [row - 0.36, row + 0.36], color=color, linewidth=3, solid_capstyle="butt")
    ax.plot(values, row + OFFSETS[: len(values)], "o", color=color, markersize=4.5)
