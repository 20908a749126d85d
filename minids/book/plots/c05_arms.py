"""The arms of the recorded balance experiment: what they are called, how they look, and what their runs measured.

Every arm has been trained with each pair of two seeds of weights and two seeds of data. A point in a picture is the
mean of these runs, a line through it goes from the lowest to the highest. What is called separated, `Measured` says.
"""

from __future__ import annotations

import statistics

from matplotlib.axes import Axes

from minids.book.plots.style import LAYERS, MUTED
from minids.book.recorded import Measured, runs_of

# What balances: its colour and its marker.
LOOKS = {
    "none": (MUTED, "X"), "loss": (LAYERS[4], "s"), "batch loss": (LAYERS[7], "D"), "bias": (LAYERS[0], "o"),
    "bias + loss": (LAYERS[1], "P"), "nodes": (LAYERS[0], "o"),
}  # fmt: skip
NAMES = {  # long, as labels say it; short, as titles and keys say it
    "none": ("No balancing", "no balancing"),
    "loss": ("Sequence-wise loss", "sequence loss"),
    "batch loss": ("Batch-wise loss", "batch loss"),
    "bias": ("Bias", "bias"),
    "bias + loss": ("Bias and small sequence-wise loss", "bias and small loss"),
    "nodes": ("Bias, {} of 8 nodes", "{} of 8 nodes"),
}
VIOLATIONS = [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20]  # ticks of MaxVio
SYMBOLS = {"loss": "α", "batch loss": "α", "bias": "γ"}  # of the families with a number


def bits(result: dict, arm: str) -> Measured:
    """Held-out bits per byte of prose and code together."""
    return Measured(tuple(run["bits_per_byte"]["prose_and_code"] for run in runs_of(result, arm)))


def violation(result: dict, arm: str) -> Measured:
    """MaxVio of all held-out tokens, the published MaxVio_global; mean of the layers."""
    return Measured(tuple(statistics.mean(run["max_violation_held_out"]) for run in runs_of(result, arm)))


def batch_violation(result: dict, arm: str) -> Measured:
    """MaxVio of a batch of training, mean of the last 50 steps and of the layers."""
    return Measured(tuple(run["max_violation"] for run in runs_of(result, arm)))


def told(result: dict, arm: str) -> tuple[Measured, Measured]:
    """Bits that an expert tells about its token's domain, and the same with shuffled labels; means of the layers.

    Neither is subtracted from the other.
    """
    return tuple(
        Measured(tuple(statistics.mean(run[name]) for run in runs_of(result, arm)))
        for name in ("information", "information_shuffled")
    )


def family(arm: str) -> str:
    """Return what balances an arm: its name without the number."""
    return next(name for name in sorted(LOOKS, key=len, reverse=True) if arm.startswith(name))


def strength(arm: str) -> str:
    """Return the number in an arm's name, such as "0.01"; "" where there is none."""
    return arm.removeprefix(family(arm)).strip()


def arms_of(result: dict, name: str) -> list[str]:
    """Return the arms of a family from the least to the greatest number."""
    return sorted((arm for arm in result["arms"] if family(arm) == name and strength(arm)),
                  key=lambda arm: float(strength(arm)))  # fmt: skip


def setting(arm: str) -> str:
    """Return the number of an arm with its symbol, such as "α = 0.01"; "" where there is none."""
    symbol = SYMBOLS.get(family(arm))
    return f"{symbol} = {strength(arm)}" if symbol else ""


def long_name(arm: str) -> str:
    """Return an arm's name with its number, as labels say it: "Sequence-wise loss, α = 0.01"."""
    return _name(arm, 0)


def short_name(arm: str) -> str:
    """Return an arm's name with its number, as titles say it: "sequence loss, α = 0.01"."""
    return _name(arm, 1)


def _name(arm: str, length: int) -> str:
    return ", ".join(filter(None, (NAMES[family(arm)][length].format(strength(arm)), setting(arm))))


def draw_range(ax: Axes, x: Measured | float, y: Measured, arm: str, **how) -> None:
    """Draw the mean of an arm's runs, and a line from the lowest to the highest."""
    color, marker = LOOKS[family(arm)]
    at = x.mean if isinstance(x, Measured) else x
    if isinstance(x, Measured):
        ax.plot([x.low, x.high], [y.mean, y.mean], color=color, linewidth=1.2, zorder=2)
    ax.plot([at, at], [y.low, y.high], color=color, linewidth=1.2, zorder=2)
    ax.plot([at], [y.mean], marker, color=color, markersize=8, markeredgecolor="white", zorder=3, **how)


def verdict(arm: Measured, reference: Measured) -> str:
    """Return what an arm's bits per byte are against the reference's, as a few words."""
    if not arm.apart(reference):
        return "no cost separated"
    return f"{'costs' if reference.below(arm) else 'saves'} {abs(arm.mean - reference.mean):.3f} bits a byte"


def against(arm: Measured, reference: Measured, name: str) -> str:
    """Return where an arm's bits per byte are from those of the reference, which is called `name`."""
    if not arm.apart(reference):
        return f"not separated from {name}"
    way = "above" if reference.below(arm) else "below"
    return f"{abs(arm.mean - reference.mean):.3f} bits a byte {way} {name}"
