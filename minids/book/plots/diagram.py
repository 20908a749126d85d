"""A small grammar for drawings of data flow.

A box is an operation, a line a tensor. An arrowhead stands only where a line ends, a dot where it forks.
What is cached has a dashed outline. Places are given in points of a page 648 wide (9 inches), from the
lower left, so that a type size and a box height are in the same unit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

from minids.book.plots.style import INK, PALE, PAPER, PT_PER_INCH, WIDTH, new_figure, readable_on

FAINT = "#F1F2F4"  # the fill of what is not lit
FAINT_INK = "#8A8F96"
LINE = "#C9CCD1"  # around what is not lit
PANEL = "#FAFAF8"


def one_decimal(number: float) -> str:
    """Return a number as boxes show it, without a minus before zero."""
    return f"{number:.1f}".replace("-0.0", "0.0")


def two_decimals(number: float) -> str:
    """Return a number as wider boxes show it, without a minus before zero."""
    return f"{number:.2f}".replace("-0.00", "0.00")


def say(numbers: Sequence[float], show: Callable[[float], str] = one_decimal) -> str:
    """Return numbers side by side, as the boxes show them."""
    return " ".join(map(show, numbers))


class Diagram:
    """A figure to draw on, `height` points high, from `bottom` up.

    Its limits are fixed, so patches are added by `add_artist`: `add_patch` would search each for new limits, slowly.
    """

    def __init__(self, height: float, bottom: float = 0):
        self.height = height
        self.figure = new_figure(height=height / PT_PER_INCH)
        self.ax = self.figure.add_axes((0, 0, 1, 1))
        self.ax.set(xlim=(0, WIDTH * PT_PER_INCH), ylim=(bottom, bottom + height))
        self.ax.axis("off")

    def box(
        self, x: float, y: float, width: float, height: float, text: str = "", *,
        color: str = PAPER, lit: bool = True, size: float = 11, cached: bool = False, weight: str = "normal",
    ) -> None:  # fmt: skip
        """Draw an operation with its lower left corner at (x, y)."""
        face = color if lit else FAINT
        edge = INK if cached and lit else "none" if lit and color != PAPER else LINE
        self.ax.add_artist(
            FancyBboxPatch(
                (x, y), width, height, boxstyle="round,pad=0,rounding_size=3", facecolor=face, edgecolor=edge,
                linewidth=1.4 if cached else 0.8, linestyle=(0, (3, 2)) if cached else "-", zorder=3,
            )
        )  # fmt: skip
        ink = readable_on(face) if lit else FAINT_INK
        self.ax.text(
            x + width / 2, y + height / 2, text, ha="center", va="center", size=size, color=ink,
            weight=weight, zorder=4, linespacing=1.25,
        )  # fmt: skip

    def boxes(
        self, x: float, y: float, values: Sequence[float | None], size: tuple[float, float], color: str = PAPER, *,
        show: Callable[[float], str] | None = None, edge: str = PAPER, ink: str | None = None,
    ) -> float:  # fmt: skip
        """Draw a row of boxes, one number each, as `show` gives it, and return its right edge. None is an empty box."""
        for value in values:
            face = color if value is not None else PAPER
            border = edge if value is not None else PALE
            self.ax.add_artist(Rectangle((x, y), *size, facecolor=face, edgecolor=border, linewidth=0.7, zorder=3))
            if show and value is not None:
                middle = x + size[0] / 2, y + size[1] / 2 - 0.5
                self.text(*middle, show(value), size=10, ha="center", va="center", color=ink or readable_on(face))
            x += size[0]
        return x

    def outline(self, x: float, y: float, width: float, height: float, **how) -> None:
        """Draw a frame around boxes."""
        how = {"edgecolor": INK, "linewidth": 1.4, "zorder": 3.6} | how
        self.ax.add_artist(Rectangle((x, y), width, height, facecolor="none", **how))

    def panel(self, x: float, y: float, width: float, height: float, title: str, lit: bool = True) -> None:
        """Draw the ground that a group of boxes stands on, its title at the top left."""
        self.ax.add_artist(
            FancyBboxPatch(
                (x, y), width, height, boxstyle="round,pad=0,rounding_size=6", facecolor=PANEL, edgecolor="#DDDFE3",
                linewidth=1, zorder=1,
            )
        )  # fmt: skip
        self.text(x + 10, y + height - 16, title, size=12, weight="bold", color=INK if lit else FAINT_INK)

    def wedge(self, corners: list[tuple[float, float]]) -> None:
        """Draw the opening from a part to its enlargement."""
        self.ax.add_artist(Polygon(corners, closed=True, facecolor="#E3E5EA", edgecolor="none", zorder=0.5))

    def line(self, *points: tuple[float, float], lit: bool = True, arrow: bool = True, width: float = 1.3) -> None:
        """Draw a tensor's way through the points."""
        color = INK if lit else "#B9BDC3"
        for (x0, y0), (x1, y1) in itertools.pairwise(points[:-1]):
            self.ax.plot((x0, x1), (y0, y1), color=color, linewidth=width, solid_capstyle="round", zorder=2)
        style = "-|>,head_length=3.2,head_width=1.8" if arrow else "-"
        self.ax.add_artist(
            FancyArrowPatch(
                points[-2], points[-1], arrowstyle=style, color=color, linewidth=width, shrinkA=0, shrinkB=0,
                mutation_scale=1, zorder=2, capstyle="round",
            )
        )  # fmt: skip

    def dot(self, x: float, y: float, lit: bool = True) -> None:
        self.ax.add_artist(Circle((x, y), 2, color=INK if lit else "#B9BDC3", zorder=3))

    def plus(self, x: float, y: float, lit: bool = True, sign: str = "+") -> None:
        """Draw the sum (or product) of the lines that meet here."""
        color = INK if lit else FAINT_INK
        self.ax.add_artist(Circle((x, y), 7, facecolor="white", edgecolor=color, linewidth=1, zorder=3))
        self.ax.text(x, y - 0.5, sign, ha="center", va="center", size=11, color=color, zorder=4)

    def square(self, x: float, y: float, side: float, color: str) -> None:
        self.ax.add_artist(Rectangle((x, y), side, side, facecolor=color, edgecolor="none", zorder=3))

    def text(self, x: float, y: float, text: str, *, size: float = 11, color: str = INK, **how) -> None:
        self.ax.text(x, y, text, size=size, color=color, zorder=4, **{"va": "baseline", **how})

    def chapter(self, x: float, y: float, number: int, lit: bool = True) -> None:
        """Draw the number of the chapter that is about this part."""
        self.ax.add_artist(Circle((x, y), 9, color=INK if lit else LINE, zorder=5))
        self.ax.text(x, y, f"{number}", ha="center", va="center", size=10, color="white", weight="bold", zorder=6)
