"""What speculative decoding gains, from the acceptance of drafts and the costs of a step (chapter 6)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from minids.book.plots.helpers import DASHED, label_ends
from minids.book.plots.style import DOMAINS, INK, LAYERS, MUTED, Picture, new_figure, styled
from minids.cost.published import MTP_ACCEPTANCE, MTP_SPEED_UP
from minids.cost.speculation import break_even, speed_up, tokens_per_step
from minids.validation import require

DRAFTS = (1, 2, 4)  # per step, of the curves
HIGHEST = 3.2  # speed-up that is drawn
COLOR_V3 = LAYERS[7]

Point = tuple[str, float, float]  # what was measured, its acceptance and its speed-up


@styled()
def draw_speculation_speedup(
    acceptance: float = 0.85,
    draft_cost: float = 0.05,
    verify_cost: float = 1.05,
    drafts: int = 1,
    measured: Sequence[Point] = (),
) -> Picture:
    """Draw the speed-up over plain decoding against the acceptance, for 1, 2 and 4 drafts per step.

    Costs are in plain steps: `draft_cost` of one draft, `verify_cost` of the step that verifies them, however many they
    are. `measured` points are drawn as well. Raises ValueError for another number of drafts, an acceptance that is no
    probability, and a cost that is not possible.
    """
    require("drafts", drafts, drafts in DRAFTS, "1, 2 or 4")
    tokens, speed = tokens_per_step(acceptance, drafts), speed_up(acceptance, drafts, draft_cost, verify_cost)
    fig = new_figure(height=5)
    ax = fig.add_axes((0.08, 0.13, 0.76, 0.63))
    ax.set(xlim=(0, 1), ylim=(0, HIGHEST), xlabel="acceptance of a draft", ylabel="times as fast as plain decoding")
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    _draw_curves(ax, draft_cost, verify_cost, drafts)
    even = break_even(drafts, draft_cost, verify_cost)
    if even is not None:
        ax.plot([even], [1], "o", color=INK, markersize=6, zorder=4, clip_on=False)
    marker = "o" if speed < HIGHEST else "^"  # a triangle says that it is higher
    ax.plot([acceptance], [min(speed, HIGHEST)], marker, color=INK, markersize=10, zorder=5, clip_on=False)
    _draw_published(ax)
    _draw_measured(ax, measured)

    words = "1 draft" if drafts == 1 else f"{drafts} drafts"
    only = "only " if speed < 1 else ""
    finding = f"{words}, {acceptance:.0%} accepted: {tokens:.2f} tokens per step, {only}{speed:.2f} times as fast"
    cost = verify_cost + drafts * draft_cost
    costs = f"a step costs {cost:.2f} plain steps: {verify_cost:.2f} to verify, {drafts} × {draft_cost:.2f} to draft"
    if even in (None, 0, 1):
        pays = "never slower" if even == 0 else "never faster"
    else:
        pays = f"faster from {even:.0%} on (small dot)"
    fig.title(finding, y=0.93)
    fig.note(0.02, 0.87, f"{costs}; {pays}")
    dashed = "dashed: drafts cost nothing, and verifying them no more than a plain step"
    fig.note(0.02, 0.82, f"{dashed}; diamonds: measured" if measured else dashed)
    low, high = (tokens_per_step(a, 1) for a in MTP_ACCEPTANCE)
    fig.alt = (
        f"{finding} as plain decoding; {costs}; {pays}. V3’s report: acceptance {MTP_ACCEPTANCE[0]:.0%} to "
        f"{MTP_ACCEPTANCE[1]:.0%}, {MTP_SPEED_UP} times as fast, where {low:.2f} to {high:.2f} is ideal."
        + "".join(f" Measured, {name}: acceptance {a:.0%}, {s:.2f} times as fast." for name, a, s in measured)
    )
    return fig


def _draw_curves(ax: Axes, draft_cost: float, verify_cost: float, drafts: int) -> None:
    """Draw the speed-up for each number of drafts, the chosen one's ideal, and plain decoding; name them at the right.

    What leaves the axes is named at its top.
    """
    accepted = np.linspace(0, 1, 101)
    ax.axhline(1, color=MUTED, linewidth=1)
    ideal = [tokens_per_step(a, drafts) for a in accepted]
    ax.plot(accepted, ideal, color=MUTED, linewidth=1.4, linestyle=DASHED)
    ends = {"plain decoding": (1.0, MUTED), "ideal": (ideal[-1], MUTED)}
    for number in DRAFTS:
        curve = [speed_up(a, number, draft_cost, verify_cost) for a in accepted]
        chosen = number == drafts
        ax.plot(accepted, curve, color=INK if chosen else MUTED, linewidth=3 if chosen else 1.4, zorder=2 + chosen)
        ends["1 draft" if number == 1 else f"{number} drafts"] = (curve[-1], INK if chosen else MUTED)
    ends = {name: (min(height, HIGHEST), color) for name, (height, color) in ends.items()}
    label_ends(ax, ends, gap=0.19, lowest=0.05, size=11)


def _draw_published(ax: Axes) -> None:
    """Draw V3's reported acceptance and speed-up, and say what they imply for the cost of a step."""
    ax.plot(MTP_ACCEPTANCE, [MTP_SPEED_UP] * 2, color=COLOR_V3, linewidth=5, solid_capstyle="butt", zorder=4)
    ideal = [tokens_per_step(a, 1) for a in MTP_ACCEPTANCE]
    cost = [tokens / MTP_SPEED_UP for tokens in ideal]
    words = (
        f"V3’s report: 1 draft, {MTP_ACCEPTANCE[0]:.0%} to {MTP_ACCEPTANCE[1]:.0%} accepted,\n"
        f"{MTP_SPEED_UP} times as fast; {ideal[0]:.2f} to {ideal[1]:.2f} is ideal,\n"
        f"so a step costs {cost[0]:.2f} to {cost[1]:.2f} plain steps"
    )
    ax.plot([0.02, 0.07], [HIGHEST - 0.15] * 2, color=COLOR_V3, linewidth=5, solid_capstyle="butt")
    ax.text(0.085, HIGHEST - 0.05, words, size=11, color=COLOR_V3, va="top", linespacing=1.3)


def _draw_measured(ax: Axes, measured: Sequence[Point]) -> None:
    """Draw the measured points, the name of each below it, and below those of higher ones."""
    height = HIGHEST
    for name, acceptance, speed in sorted(measured, key=lambda point: -point[2]):
        color = DOMAINS.get(name, INK)
        ax.plot([acceptance], [speed], "D", color=color, markersize=8, markeredgecolor="white", zorder=6)
        height = min(speed, height) - 0.21
        ground = dict(facecolor="white", edgecolor="none", alpha=0.8, pad=0.5)
        ax.text(acceptance, height, name, size=11, color=color, ha="center", va="center", bbox=ground, zorder=4)
