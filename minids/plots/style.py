"""One palette with fixed meanings and one matplotlib style.

Colours are Okabe and Ito's, which stay apart for colour-blind eyes. Lines are labelled where they
end, so that nobody has to tell them apart by colour alone.
"""

import matplotlib
from matplotlib.figure import Figure

INK = "#222222"
MUTED = "#767676"
DOMAINS = {"prose": "#0072B2", "code": "#D55E00", "arithmetic": "#009E73", "text": "#0072B2"}
LAYERS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8A6D00")

STYLE = {
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 14,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 2,
}


def new_figure(height: float = 5) -> Figure:
    """Return an empty figure in the book's style, in inches."""
    with matplotlib.rc_context(STYLE):
        return Figure(figsize=(9, height))


def styled():
    """The style as a context, to draw in."""
    return matplotlib.rc_context(STYLE)


def spread(heights: dict[str, float], gap: float, lowest: float) -> dict[str, float]:
    """Move labels apart until neighbours are `gap` from each other, keeping their order and, roughly, their middle.

    None ends up below `lowest`.
    """
    placed: dict[str, float] = {}
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        placed[name] = max([height, *(other + gap for other in placed.values())])
    shift = (sum(placed.values()) - sum(heights.values())) / len(placed)
    shift = min(shift, min(placed.values()) - lowest)
    return {name: height - shift for name, height in placed.items()}
