"""What many pictures do: label points and the ends of lines, name ticks, and keep logarithmic axes bare."""

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from minids.book.plots.style import INK

DASHED = (0, (4, 3))  # a line style: dash and gap, in widths of the line


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
