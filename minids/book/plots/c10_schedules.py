"""The settings that change during a run: the miniature's beside those of DeepSeek-V3, over the share of the tokens."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from minids.book.plots.style import INK, PALE, Picture, new_figure, styled
from minids.cost.published import V3_FROZEN, V3_RATE_ENDS, V3_TOKENS, Settings, v3_settings_at
from minids.training.config import MINIATURE, TrainConfig

V3, OURS = INK, "#D55E00"
NAMES = {
    "learning_rate": "learning\nrate", "batch_size": "batch size,\nsequences", "bias_speed": "γ, speed of\nthe biases",
    "mtp_weight": "λ, weight\nof MTP",
}  # fmt: skip
EDGE = 0.05  # share of the tokens at either end that is drawn wider
DRAWN = 0.25  # share of the axis that each end takes


def settings_at(config: TrainConfig, share: float) -> Settings:
    """Return the settings of a run of ours after this share of its tokens, from 0 to 1."""
    step = min(int(share * config.steps), config.steps - 1)
    return Settings(
        learning_rate=config.learning_rate_at(step),
        batch_size=config.batch_size,
        bias_speed=config.bias_speed_at(step),
        mtp_weight=config.mtp_weight_at(step),
    )


@styled()
def draw_schedules(config: TrainConfig | None = None) -> Picture:
    """Draw learning rate, batch size, γ and λ over the run, of the miniature (or `config`) and of V3.

    Each is drawn relative to the largest value of its run. The first and the last 5% of the tokens are drawn wider.
    """
    config = config or MINIATURE
    shares = np.unique(
        np.concatenate([np.linspace(0, EDGE, 600), np.linspace(0, 1, 2000), np.linspace(1 - EDGE, 1, 600)])
    )
    runs = {
        "V3": [v3_settings_at(share * V3_TOKENS) for share in shares],
        "miniature": [settings_at(config, share) for share in shares],
    }
    drawn = {
        field: {run: np.array([getattr(settings, field) for settings in found]) for run, found in runs.items()}
        for field in NAMES
    }
    fig = new_figure(height=6.2)
    for row, (field, name) in enumerate(NAMES.items()):
        ax = fig.add_axes((0.15, 0.675 - 0.187 * row, 0.655, 0.125))
        _prepare(ax, last=row == len(NAMES) - 1)
        ax.text(-0.2, 0.5, name, size=13, va="center", transform=ax.transAxes)
        for run, color, width in (("V3", V3, 4.5), ("miniature", OURS, 2)):
            values = drawn[field][run]
            height = values / (values.max() or 1)
            ax.plot(shares, height, color=color, linewidth=width, solid_capstyle="butt", clip_on=False)
            at = 0.75 if run == "V3" else 0.2
            ax.text(1.03, at, _said(values), size=12, color=color, va="center", transform=ax.transAxes)
    for y, run, color in ((0.865, "V3", V3), (0.828, "miniature", OURS)):
        fig.text(0.825, y, run, size=13, color=color, weight="bold")
    falls, others = f"{config.decay_start / config.steps:.0%}", f"{V3_RATE_ENDS[0] / V3_TOKENS:.0%}"
    frozen, theirs = f"{1 - config.frozen_start / config.steps:.1%}", f"{V3_FROZEN / V3_TOKENS:.1%}"
    beside = "as" if falls == others else f"from {others}"
    finding = (
        f"The learning rate falls from {falls} of the tokens on, {beside} in V3;",
        f"the biases are frozen for the last {frozen}, {'as' if frozen == theirs else theirs} in V3",
    )
    for line, y in zip(finding, (0.935, 0.89), strict=True):
        fig.title(line, y)
    settings = [
        f"{name.replace(chr(10), ' ')}: " + ", ".join(f"{run} {_said(values)}" for run, values in drawn[field].items())
        for field, name in NAMES.items()
    ]
    fig.alt = f"{' '.join(finding)}. {'; '.join(settings)}"
    return fig


def _prepare(ax: Axes, last: bool) -> None:
    """Give an axis its scale, which is wider at both ends, shaded there, with ticks in percent."""
    places, drawn = [0, EDGE, 1 - EDGE, 1], [0, DRAWN, 1 - DRAWN, 1]
    ax.set_xscale("function", functions=(lambda x: np.interp(x, places, drawn), lambda y: np.interp(y, drawn, places)))
    ax.set(xlim=(0, 1), ylim=(0, 1.08), yticks=[])
    ax.spines["left"].set_visible(False)
    for low, high in ((0, EDGE), (1 - EDGE, 1)):
        ax.axvspan(low, high, color=PALE, alpha=0.55, linewidth=0, zorder=0)
    ticks = [0, 0.01, 0.03, EDGE, 0.25, 0.5, 0.75, 1 - EDGE, 0.97, 1]
    ax.set_xticks(ticks, [f"{100 * tick:.0f}%" for tick in ticks] if last else [""] * len(ticks))
    ax.tick_params(labelsize=11)
    if last:
        ax.set_xlabel("share of the training tokens; grey: the first and the last 5%, drawn wider", size=12)


def _said(values: np.ndarray) -> str:
    """Return where a setting begins, after a warm-up, and where it ends, as text."""
    first, peak, last = values[0], values.max(), values[-1]
    start = peak if first < peak > last else first
    return _number(last) if start == last else f"{_number(start)} → {_number(last)}"


def _number(value: float) -> str:
    return f"{value:,g}" if value >= 1e-3 or not value else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
