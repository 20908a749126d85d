"""The rule of speculative decoding for one draft: what is accepted, what is replaced, what comes out (chapter 6)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from minids.book.plots.diagram import say, two_decimals
from minids.book.plots.helpers import name_ticks
from minids.book.plots.style import INK, PAPER, VERDICTS, Picture, new_figure, readable_on, styled, tint
from minids.validation import is_number, require

P = np.array([0.42, 0.26, 0.16, 0.1, 0.06])  # of the model
FAR = np.array([0.04, 0.04, 0.32, 0.2, 0.4])  # of a draft that is quite wrong
FACES = {
    "accepted": VERDICTS["right"],
    "rejected": tint(VERDICTS["wrong"], 0.6),
    "residual": PAPER,
    "replacements": INK,
}
DASHES = {"edgecolor": INK, "linestyle": (0, (3, 2)), "linewidth": 1.2}
WHITE = {"edgecolor": PAPER, "linewidth": 0.8}
LIMIT, HEIGHT = 0.52, 0.7  # of the axes; of a bar
ROOM = 0.045  # a part narrower than this has no room for its number


@styled()
def draw_acceptance_rule(closeness: float = 0.5, tokens: Sequence[str] = ("the", "a", "his", "her", "this")) -> Picture:
    """Draw what becomes of a draft whose distribution q lies between a wrong one (closeness 0) and the model's p (1).

    Left, q: its part min(p, q) is accepted, the rest rejected. Right, what comes out: the accepted drafts, and
    replacements drawn from the residual. Raises ValueError for a closeness that is not from 0 to 1, and for a number of
    tokens other than five.
    """
    require("closeness", closeness, is_number(closeness) and 0 <= closeness <= 1, "from 0 to 1")
    require("len(tokens)", len(tokens), len(tokens) == len(P), f"{len(P)}")
    q = closeness * P + (1 - closeness) * FAR
    accepted, residual = np.minimum(P, q), np.maximum(P - q, 0)
    rejected, total = q - accepted, residual.sum()
    replacements = rejected.sum() * (residual / total if total else residual)
    out = accepted + replacements
    fig = new_figure(height=4.2)
    left, right = (fig.add_axes((x, 0.04, 0.4, 0.55)) for x in (0.07, 0.57))
    _bars(left, tokens, "q", q, {"accepted": accepted, "rejected": rejected, "residual": residual})
    _bars(right, tokens, "p", out, {"accepted": accepted, "replacements": replacements})
    fig.text(0.02, 0.725, "What is drafted", size=12, weight="bold")
    fig.text(0.52, 0.725, "What comes out", size=12, weight="bold")
    fig.title(f"{accepted.sum():.0%} of the drafts are accepted, and what comes out is distributed as p")
    fig.note(0.02, 0.84, "Accepted: min(p, q). Residual: max(0, p − q), in all as much as is rejected. "
             "Replacements are drawn from it.", size=10)  # fmt: skip
    fig.alt = (
        f"{', '.join(tokens)}: the model’s p {say(P, two_decimals)}, the draft’s q {say(q, two_decimals)}. Accepted "
        f"{say(accepted, two_decimals)}, together {accepted.sum():.2f}; rejected {say(rejected, two_decimals)}; "
        f"replacements {say(replacements, two_decimals)}; what comes out {say(out, two_decimals)}"
    )
    return fig


def _bars(ax: Axes, tokens: Sequence[str], name: str, sums: np.ndarray, parts: dict[str, np.ndarray]) -> None:
    """Draw the parts of each token's probability side by side, with a key above and `sums` at the right."""
    x, start = -0.063, np.zeros(len(tokens))
    for kind, widths in parts.items():
        face, edge = FACES[kind], DASHES if kind == "residual" else WHITE
        for y in np.flatnonzero(widths > 1e-9):
            ax.barh(y, widths[y], HEIGHT, start[y], facecolor=face, **edge)
            if widths[y] > ROOM:
                ax.text(start[y] + widths[y] / 2, y, two_decimals(widths[y]), ha="center", va="center_baseline",
                        size=10, color=readable_on(face))  # fmt: skip
        ax.barh(-1.12, 0.018, 0.32, x, facecolor=face, clip_on=False, **edge)
        ax.text(x + 0.026, -1.12, f"{kind} {widths.sum():.2f}", va="center_baseline", size=11)
        x += 0.04 + 0.012 * (len(kind) + 5)
        start = start + (widths if kind != "residual" else 0)
    ax.text(LIMIT, -0.66, name, ha="right", va="center_baseline", size=12, style="italic")
    for y, number in enumerate(sums):
        ax.text(LIMIT, y, two_decimals(number), ha="right", va="center_baseline", size=11)
    ax.set(xlim=(0, LIMIT), ylim=(len(tokens) - 0.6, -0.45))
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
    name_ticks(ax, "y", tokens)
