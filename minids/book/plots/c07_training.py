"""Training in FP8: the recorded loss curves beside those of FP32, and what each part of the recipe is worth."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from minids.book.plots.helpers import DASHED, draw_runs, label, label_ends, write_row
from minids.book.plots.style import INK, LAYERS, MUTED, PALE, Picture, new_figure, styled
from minids.book.recorded import STANDINGS, bits_of, compare, runs_of

REFERENCE, CHANCE = "FP32", "FP32 again"
COLORS = {"FP8": LAYERS[1], "BF16": LAYERS[6], CHANCE: MUTED}
PUBLISHED = 0.25  # percent: relative loss error of a 16B and a 230B model against BF16 (V3 report, appendix B.1)
SMOOTHING = 0.9  # of the report's curves, an exponential mean over the steps
FIRST = 30  # steps that are not drawn: the mean begins with few of them
SAID = dict(zip(STANDINGS, ("lower", "higher", "not separated"), strict=True))


def relative_differences(result: dict, arm: str) -> np.ndarray:
    """Return by how many percent the smoothed training loss of an arm differs from FP32's, (seeds, steps)."""
    ours, theirs = (np.array([smoothed(run["history"]) for run in runs_of(result, name)]) for name in (arm, REFERENCE))
    return 100 * (ours / theirs - 1)


def smoothed(losses: list[float]) -> np.ndarray:
    """Return the exponential mean up to each step."""
    means = [losses[0]]
    for loss in losses[1:]:
        means.append(SMOOTHING * means[-1] + (1 - SMOOTHING) * loss)
    return np.array(means)


def chance(result: dict) -> float:
    """Return the largest difference between FP32 and FP32 again, in percent of held-out bits per byte."""
    return float(np.abs(percent(result, CHANCE)).max())


def standing(result: dict, arm: str) -> str:
    """Return whether an arm's held-out loss is "higher" or "lower" than FP32's, or "not separated".

    It is separated if `Measured` says so and the difference of some seed is larger than what chance alone does.
    """
    by_chance = np.abs(percent(result, arm)).max() <= chance(result)
    return SAID[compare(result, arm, REFERENCE)] if not by_chance else SAID[STANDINGS[2]]


def percent(result: dict, arm: str) -> np.ndarray:
    """Return by how many percent an arm's held-out bits per byte differ from FP32's, for each seed."""
    return 100 * (bits_of(result, arm) / bits_of(result, REFERENCE) - 1).ravel()


@styled()
def draw_fp8_loss(result: dict) -> Picture:
    """Draw how the training loss of FP8, of BF16 and of FP32 with another last bit differs from FP32's.

    The losses are smoothed as the report's. Thin lines and the grey area end at the lowest and the highest of
    the seeds, the thick line is their mean. Dashed is the report's 0.25%.
    """
    fig = new_figure(height=4.6)
    ax = fig.add_axes((0.105, 0.13, 0.74, 0.67))
    ends, said = {}, []
    for arm, color in reversed(COLORS.items()):
        differences = relative_differences(result, arm)
        steps = np.arange(FIRST, differences.shape[1])
        shown = differences[:, FIRST:]
        low, high = shown.min(axis=0), shown.max(axis=0)
        if arm == CHANCE:
            ax.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
        else:
            ax.plot(steps, np.stack([low, high], axis=1), color=color, linewidth=0.8)
        ax.plot(steps, shown.mean(axis=0), color=color)
        ends[arm] = (shown[:, -1].mean(), color)
        said.append(f"{arm} within {np.abs(shown).max():.2f}%, mean at the end {shown[:, -1].mean():+.2f}%")
    for bound in (-PUBLISHED, PUBLISHED):
        ax.axhline(bound, color=INK, linewidth=1.2, linestyle=DASHED)
    ax.axhline(0, color=PALE, zorder=0)
    ax.set(xlim=(FIRST, steps[-1]), xlabel="step")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:+g}%".replace("-", "−") if value else "0")
    label_ends(ax, ends, gap=0.09 * np.ptp(ax.get_ylim()))
    most = {arm: np.abs(relative_differences(result, arm)[:, FIRST:]).max() for arm in COLORS}
    fig.title(
        f"FP8 differs from FP32 by up to {most['FP8']:.1f}%, BF16 by {most['BF16']:.1f}%, "
        f"FP32 from itself by {most[CHANCE]:.1f}%"
    )
    seeds = len(result["seeds"])
    fig.note(
        0.02,
        0.85,
        f"training loss against FP32’s; {seeds} seeds: mean and range (thin, or grey), smoothed; "
        f"dashed: the report’s {PUBLISHED}%",
    )
    fig.alt = "; ".join(reversed(said))
    return fig


@styled()
def draw_fp8_arms(result: dict) -> Picture:
    """Draw by how many percent each arm's held-out bits per byte differ from FP32's, a dot for each seed.

    Grey is as far as FP32 is from itself with another last bit. Beside each arm stands its `standing`.
    """
    arms = [arm for arm in result["arms"] if arm != REFERENCE]
    fig = new_figure(height=0.36 * len(arms) + 1.5)
    ax = fig.add_axes((0.245, 0.52 / fig.get_figheight(), 0.46, 1 - 1.65 / fig.get_figheight()))
    ax.set(ylim=(len(arms) - 0.4, -0.6), yticks=[])
    ax.spines["left"].set_visible(False)
    away = chance(result)
    ax.axvspan(-away, away, color=PALE, alpha=0.6, linewidth=0, zorder=0)
    said, worse = [], []
    for row, arm in enumerate(arms):
        differences, words = percent(result, arm), standing(result, arm)
        draw_runs(ax, row, differences, COLORS.get(arm, INK))
        write_row(ax, row, {0.02: arm}, ha="left", size=12)
        write_row(ax, row, {0.80: f"{differences.mean():+.2f}%".replace("-", "−")})
        write_row(ax, row, {0.825: "chance" if arm == CHANCE else words}, ha="left")
        said.append(f"{arm} {differences.mean():+.2f}% ({'chance' if arm == CHANCE else words})")
        worse += [arm] * (words == SAID["behind"])
    _x_axis(ax)
    fig.title(_finding(result, worse), y=1 - 0.42 / fig.get_figheight())
    fig.note(
        0.02, 1 - 0.82 / fig.get_figheight(),
        "held-out bits per byte against FP32 with the same seed; grey: FP32 against itself with other last bits",
        size=10.5,
    )  # fmt: skip
    fig.alt = "; ".join(said)
    return fig


def _x_axis(ax: Axes) -> None:
    ax.set_xscale("symlog", linthresh=1, linscale=2.2)
    ax.set_xlim(min(-0.7, 1.2 * ax.dataLim.x0), max(1.2, 1.4 * ax.dataLim.x1))
    ax.set_xticks([tick for tick in (-1, -0.5, 0, 0.5, 1, 10) if ax.get_xlim()[0] <= tick <= ax.get_xlim()[1]])
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:+g}%".replace("-", "−") if value else "0")
    ax.minorticks_off()


def _finding(result: dict, worse: list[str]) -> str:
    eight = standing(result, "FP8")
    first = "FP8 is not separated from FP32" if eight == "not separated" else f"FP8’s loss is {eight} than FP32’s"
    rest = [f"“{arm}”" for arm in worse if arm != "FP8"]
    if rest:
        return f"{first}; " + (f"only {rest[0]} is higher" if len(rest) == 1 else f"higher: {', '.join(rest)}")
    return f"{first}, and " + ("neither is any other arm" if eight == "not separated" else "no other arm’s is")


@styled()
def draw_outlier_loss(powers: tuple[int, ...], losses: dict[str, list[float]], uniform: float) -> Picture:
    """Draw a model's loss against the size of an outlier that changes its function in no other way.

    `losses` is from `losses_with_outliers`; `uniform` is the loss of a guess among all tokens.
    """
    fig = new_figure(height=4.4)
    ax = fig.add_axes((0.075, 0.14, 0.67, 0.65))
    colors = dict(zip(losses, (INK, LAYERS[1], LAYERS[5], LAYERS[3], LAYERS[2]), strict=False))
    for name, values in losses.items():
        ax.plot(powers, values, "--" if name == "FP32" else "o-", color=colors[name], markersize=4,
                zorder=3 if name == "FP32" else 2)  # fmt: skip
    ax.axhline(uniform, color=MUTED, linewidth=1.2, linestyle=DASHED)
    label(ax, "a guess among all tokens", (powers[0], uniform), (8, -15), color=MUTED, ha="left")
    ax.set(
        xlim=(powers[0] - 0.3, powers[-1] + 0.3), ylim=(min(losses["FP32"]) - 0.4, None), xlabel="size of the outliers"
    )
    ax.set_ylabel("loss (nats)", size=11)
    ax.set_xticks(powers, [f"$2^{{{power}}}$" for power in powers])
    label_ends(ax, {name: (values[-1], colors[name]) for name, values in losses.items()}, gap=0.36)
    fig.title(_damage(powers, losses))
    fig.note(
        0.02,
        0.835,
        "one channel of each norm is larger by this factor, the columns that read it smaller: the same function",
    )
    fig.alt = "Loss at the largest outlier: " + ", ".join(f"{name} {values[-1]:.1f}" for name, values in losses.items())
    return fig


def _damage(powers: tuple[int, ...], losses: dict[str, list[float]]) -> str:
    """Say from which size on the worst arm is clearly worse than FP32, and what the largest costs the best tiles."""
    worst = max(losses, key=lambda name: losses[name][-1])
    worse = [p for p, loss in zip(powers, losses[worst], strict=True) if loss > losses["FP32"][0] + 0.1]
    if not worse:
        return f"No outlier up to $2^{{{powers[-1]}}}$ costs any of them 0.1 nats"
    worst = f"With {worst}" if worst.startswith("one") else f"With the {worst}"
    cost, tiles = min((loss[-1] - losses["FP32"][-1], name) for name, loss in losses.items() if "tiles" in name)
    return f"{worst}, outliers of $2^{{{worse[0]}}}$ do harm; {tiles} lose only {cost:.1f} nats at $2^{{{powers[-1]}}}$"
