"""How often drafts are accepted: against the overlap of the two distributions, by domain, and by the entropy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from minids.book.plots.helpers import label, spread
from minids.book.plots.style import DOMAINS, INK, MUTED, PALE, Picture, new_figure, styled
from minids.book.probes.drafts import Drafts
from minids.validation import require

BINS = 10  # of 1 - TV
FEWEST = 20  # drafts in a bin that is drawn
FEWEST_BY_ENTROPY = 50  # drafts in a bin of one bit
MARKERS = {"prose": "o", "code": "s", "arithmetic": "D"}
FIFTHS = np.arange(6) / 5


@styled()
def draw_acceptance_is_overlap(computed: Tensor, accepted: Tensor) -> Picture:
    """Draw the fraction of drafts that speculative decoding accepted against 1 - TV, computed from p and q.

    `computed` holds 1 - TV of every judged draft, `accepted` whether it was accepted (probes/drafts.py, `judged`). The
    drafts are binned by 1 - TV. A grey bar is the mean of 1 - TV in a bin, plus and minus two standard errors.
    Raises ValueError for fewer drafts than a bin needs.
    """
    x, y = computed.double().numpy(), accepted.double().numpy()
    bins = np.minimum((BINS * x).astype(int), BINS - 1)
    fig = new_figure(height=5.6)
    ax = fig.add_axes((0.085, 0.335, 0.885, 0.49))
    ax.plot([0, 1], [0, 1], color=PALE, linewidth=1.5, zorder=0)
    away, rows = [], []
    for n in range(BINS):
        chosen = bins == n
        if chosen.sum() < FEWEST:
            continue
        expected, measured, error = x[chosen].mean(), y[chosen].mean(), _standard_error(x[chosen])
        ax.plot([expected] * 2, np.clip([expected - 2 * error, expected + 2 * error], 0, 1), color=MUTED, linewidth=9,
                alpha=0.35, solid_capstyle="butt", zorder=1)  # fmt: skip
        ax.plot(expected, measured, "o", color=INK, markersize=6, zorder=2)
        label(ax, f"{measured:.2f}", (expected, measured), (10, -11), ha="left")
        away.append(abs(measured - expected) / error if error else 0.0)
        rows.append(f"{expected:.2f} {measured:.2f} ({chosen.sum()} drafts)")
    require("the number of drafts", len(x), len(rows) > 0, f"more, so that some bin holds {FEWEST}")
    ax.set(xlim=(0, 1.03), ylim=(0, 1.06), xticks=FIFTHS, yticks=FIFTHS)
    ax.tick_params(axis="x", labelbottom=False)
    ax.set_ylabel("fraction accepted", size=11)
    ax.text(
        0.02,
        0.93,
        f"dot: measured, from {FEWEST} drafts on\ngrey: 1 − TV ± 2 standard errors",
        size=11,
        color=MUTED,
        va="top",
    )
    _draw_histogram(fig.add_axes((0.085, 0.12, 0.885, 0.13)), np.bincount(bins, minlength=BINS))
    mean, share = x.mean(), y.mean()
    fig.title(f"{share:.1%} of {len(x):,} drafts were accepted; their mean 1 − TV, computed, is {mean:.1%}", y=0.935)
    total = abs(share - mean) / max(_standard_error(x), 1e-12)
    fig.text(0.02, 0.88, f"{_errors(total)} apart in total, at most {_errors(max(away))} in a bin", size=12)
    fig.alt = (
        f"{share:.3f} of {len(x)} drafts were accepted, the mean of 1 - TV is {mean:.3f}: {_errors(total)} "
        "apart. 1 - TV and fraction accepted by bin: " + ", ".join(rows)
    )
    return fig


def _standard_error(chances: np.ndarray) -> float:
    """Return that of the fraction accepted, if each draft is accepted with its own chance."""
    return float(np.sqrt((chances * (1 - chances)).clip(min=0).sum()) / len(chances))


def _errors(count: float) -> str:
    return f"{count:.1f} standard errors"


def _draw_histogram(ax: Axes, counts: np.ndarray) -> None:
    ax.bar((np.arange(BINS) + 0.5) / BINS, counts, width=0.96 / BINS, color=PALE)
    for n, count in enumerate(counts):
        label(ax, f"{count:,}", ((n + 0.5) / BINS, count), (0, 3), color=MUTED)
    ax.set(xlim=(0, 1.03), xticks=FIFTHS, yticks=[])
    ax.set_xlabel("computed 1 − TV of the draft’s distribution q and the model’s distribution p", size=11)
    ax.set_ylabel("drafts", size=11)
    ax.spines["left"].set_visible(False)


# ---------------------------------------------------------------------------------------------------
# By domain and entropy


@styled()
def draw_acceptance_by_domain(sampled: Mapping[str, Drafts], greedy: Mapping[str, Drafts]) -> Picture:
    """Draw the acceptance at temperature 1 and the greedy agreement, on average and by the entropy of the model.

    Both map names to drafts of one depth for the same rows: those of a trained model by domain, others in grey, such as
    "untrained". A point of a curve is the mean of drafts whose entropy lies within one bit.
    """
    means = {name: (sampled[name].acceptance.mean().item(), greedy[name].acceptance.mean().item()) for name in sampled}
    fig = new_figure(height=4.8)
    left, middle, right = (
        fig.add_axes((x, 0.13, width, 0.53)) for x, width in ((0.06, 0.26), (0.38, 0.27), (0.7, 0.27))
    )
    _draw_means(left, means)
    said = []
    for ax, kind, drawn in ((middle, "temperature 1", sampled), (right, "greedy", greedy)):
        for name in means:
            points = _by_entropy(sampled[name].entropy, drawn[name].acceptance)
            ax.plot(*points.T, **_look(name, drawn is sampled), markersize=5, linewidth=1.5)
            said.append(f"{name}, {kind}: " + ", ".join(f"{bits:.1f} bits {mean:.2f}" for bits, mean in points))
        ax.set_xlabel("entropy of p in bits", size=11)
        ax.set_xlim(left=0)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for ax in (left, middle, right):
        ax.set(ylim=(-0.03, 1.03), yticks=FIFTHS)
        ax.yaxis.set_major_formatter("{x:.1f}")
    for x, words in ((0.02, "filled: temperature 1, open: greedy"), (0.38, "temperature 1"), (0.7, "greedy")):
        fig.note(x, 0.695, words)
    _key(fig, list(means), y=0.775)
    trained, others = ([name for name in means if (name in DOMAINS) == known] for known in (True, False))
    at_1 = ", ".join(f"{means[name][0]:.0%} on {name}" for name in trained)
    fig.title(f"Accepted drafts at temperature 1: {at_1}", y=0.925)
    rest = [
        f"{name.capitalize()}: {means[name][0]:.0%} at temperature 1, {means[name][1]:.0%} greedy" for name in others
    ]
    fig.text(
        0.02, 0.86, ". ".join(["Greedy: " + ", ".join(f"{means[name][1]:.0%}" for name in trained), *rest]), size=12
    )
    averages = ", ".join(f"{name} {often:.3f} and {alike:.3f}" for name, (often, alike) in means.items())
    fig.alt = f"Acceptance at temperature 1 and greedy agreement: {averages}. By the entropy of p: " + "; ".join(said)
    return fig


def _draw_means(ax: Axes, means: Mapping[str, tuple[float, float]]) -> None:
    for place, (name, pair) in enumerate(means.items()):
        ax.plot([place, place], pair, color=_look(name)["color"], linewidth=1.2, zorder=1)
        heights = spread(dict(zip((True, False), pair, strict=True)), gap=0.08, lowest=0)
        for filled, value in zip((True, False), pair, strict=True):
            ax.plot(place, value, **_look(name, filled), markersize=8)
            label(ax, f"{value:.2f}", (place, heights[filled]), (7, 0), color=_look(name)["color"])
    ax.set(xlim=(-0.5, len(means) - 0.1), xticks=[])


def _look(name: str, filled: bool = True) -> dict:
    color = DOMAINS.get(name, MUTED)
    return {"marker": MARKERS.get(name, "X"), "color": color, "markerfacecolor": color if filled else "white"}


def _key(fig: Picture, names: list[str], y: float) -> None:
    x = 0.027
    for name in names:
        fig.add_artist(Line2D([x], [y + 0.013], **_look(name), markersize=7, linewidth=0, transform=fig.transFigure))
        fig.text(x + 0.012, y, name, size=12, color=_look(name)["color"])
        x += 0.05 + 0.0115 * len(name)


def _by_entropy(entropy: Tensor, acceptance: Tensor) -> np.ndarray:
    """Return mean entropy and mean acceptance of the drafts in bins of one bit, where there are enough, (bins, 2)."""
    bits, values = entropy.flatten().numpy(), acceptance.flatten().numpy()
    bins = bits.astype(int)
    enough = np.flatnonzero(np.bincount(bins) >= FEWEST_BY_ENTROPY)
    return np.array([(bits[bins == n].mean(), values[bins == n].mean()) for n in enough]).reshape(-1, 2)
