"""The bias as a controller: how fast it balances, when it swings, and where its mean drifts (chapter 5).

The live pictures route made-up tokens (minids/book/probes/simulated_router.py), and are drawn anew at every move of a
slider.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator

from minids.book.plots.c05_arms import strength
from minids.book.plots.helpers import DASHED, label_ends, log_scale, name_ticks
from minids.book.plots.style import INK, MUTED, PALE, Picture, new_figure, styled
from minids.book.probes.simulated_router import (
    TOP_K,
    RouterRun,
    best_assignment,
    chance,
    descend,
    dual,
    route,
    run_router,
    some_affinities,
)
from minids.book.recorded import runs_of
from minids.validation import require

NEAR = 1.5  # times what chance alone leaves: settled
LAST = 30  # steps of a window, whose mean counts
# How far the biases get in the last window, as a share of the way that γ allows: more than SLOW is still one way, less
# than SWINGS is to and fro. In between neither is certain.
SLOW, SWINGS = 0.25, 0.1
CONSTANT, FALLING = "constant γ", "falling γ"
WAYS = {CONSTANT: False, FALLING: True}
DESCENT = 100  # steps


@styled()
def draw_controller(speed: float = 0.01, drift: bool = False) -> Picture:
    """Draw a router whose biases are updated with speed γ: MaxVio, the biases, and the loads of the last step.

    With `drift` the experts' preferences change during the run, and the biases have to follow.
    Raises ValueError unless the speed is above 0.
    """
    require("speed", speed, speed > 0, "above 0")
    run = run_router(speed, drift=drift)
    violations, differences = run.max_violation.numpy(), (run.biases - run.biases.mean(dim=1, keepdim=True)).numpy()
    steps, experts = differences.shape
    colors = colormaps["viridis"](np.linspace(0, 0.92, experts))
    fig = new_figure(height=5.2)
    upper, lower = fig.add_axes((0.09, 0.52, 0.56, 0.3)), fig.add_axes((0.09, 0.12, 0.56, 0.3))
    upper.plot(violations, color=INK, linewidth=1.2)
    upper.axhline(chance(), color=MUTED, linewidth=1.2, linestyle=DASHED)
    upper.set(xlim=(0, steps), ylim=(0, 6), ylabel="MaxVio")
    upper.tick_params(labelbottom=False)
    lower.add_collection(LineCollection(_lines(np.arange(steps), differences), colors=colors, linewidths=1.1))
    lower.set(xlim=(0, steps), ylim=(-0.65, 0.65), xlabel="step", ylabel="bias − mean bias")
    loads = (run.loads[-2:] / run.loads[-1].float().mean()).numpy()
    right = fig.add_axes((0.73, 0.12, 0.25, 0.7))
    right.barh(range(experts), loads[1], height=0.75, color=colors)
    right.vlines(loads[0], np.arange(experts) - 0.42, np.arange(experts) + 0.42, color=INK, linewidth=1.6)
    right.axvline(1, color=INK, linewidth=1, linestyle=DASHED)
    right.set(xlim=(0, 5), ylim=(-0.7, experts - 0.3), xlabel="load / even load")
    right.spines["left"].set_visible(False)
    name_ticks(right, "y", [])
    right.set_ylabel(f"experts, by preference{' at first' if drift else ''}", labelpad=6, color=MUTED)
    fig.note(0.09, 0.845, f"dashed: {chance():.2f}, what chance leaves where no expert is preferred", size=10)
    fig.note(0.7, 0.845, "bar: last step, line: the one before", size=10)
    fig.title(_finding(run, drift), y=0.925)
    fig.alt = (
        f"A router with {experts} experts{', whose preferences change,' if drift else ''} over {steps} steps at γ = "
        f"{speed:g}: MaxVio {violations[0]:.2f} in the first step, {violations[-LAST:].mean():.2f} in the last {LAST}; "
        f"chance alone leaves {chance():.2f}. Loads of the last step: {loads[1].min():.2f} to {loads[1].max():.2f} "
        f"times the even load."
    )
    return fig


def _finding(run: RouterRun, drift: bool) -> str:
    at_last, left = run.max_violation[-LAST:].mean().item(), chance()
    what = f"MaxVio {at_last:.2f}; chance alone leaves {left:.2f}"
    if at_last <= NEAR * left:
        above = (run.max_violation.unfold(0, LAST, 1).mean(dim=1) > NEAR * left).nonzero().flatten().tolist()
        settled = above[-1] + LAST if above else 0  # where the last window above ends
        if not 0 < settled <= len(run.loads) - 2 * LAST:
            return f"γ = {run.speed:g} reaches {what}"
        way = f"keeps up with the drift after {settled} steps," if drift else f"settles after {settled} steps at"
        return f"γ = {run.speed:g} {way} {what}"
    differences = run.biases - run.biases.mean(dim=1, keepdim=True)
    moved = (differences[-1] - differences[-1 - LAST]).abs().mean().item() / (LAST * run.speed)
    if moved > SLOW:
        way = "follow the drift" if drift else "balance"
        return f"γ = {run.speed:g} is too slow to {way}: after {len(differences)} steps MaxVio is {at_last:.2f}"
    if moved < SWINGS:
        return f"γ = {run.speed:g} is too large: the loads swing, {what}"
    return f"γ = {run.speed:g}: after {len(differences)} steps {what}"


@styled()
def draw_assignment(speed: float = 0.1) -> Picture:
    """Draw how the rule of the biases finds the best balanced assignment of one small batch.

    Left: how far the dual function D(b) is above the optimum, with γ constant and falling as 1 / step. Right: the loads
    without biases and with the last ones of the falling γ.
    """
    scores, optimum = _optimum()
    tokens, experts = scores.shape
    fig = new_figure(height=4.4)
    left, right = fig.add_axes((0.11, 0.14, 0.4, 0.6)), fig.add_axes((0.71, 0.14, 0.26, 0.6))
    zeros = torch.zeros(experts)
    paths = {words: [zeros, *descend(scores, TOP_K, speed, DESCENT, falling)] for words, falling in WAYS.items()}
    ends, gaps = {}, {}
    for (words, biases), color in zip(paths.items(), (MUTED, INK), strict=True):
        gaps[words] = np.array([100 * (dual(scores, bias, TOP_K) / optimum - 1) for bias in biases]).clip(1e-6)
        left.plot(gaps[words], color=color, linewidth=1.4)
        ends[words] = (gaps[words][-1], color)
    log_scale(left, "y", lambda value: f"{value:g}%", [1e-3, 1e-2, 0.1, 1, 10, 100])
    left.set(xlim=(0, DESCENT), ylim=(1e-4, 20), xlabel="step")
    label_ends(left, ends, gap=0.35, lowest=-3.9, shift=4, size=11)
    last = paths[FALLING][-1]
    before, after = (route(scores, bias, TOP_K).numpy() for bias in (zeros, last))
    even = tokens * TOP_K / experts
    right.barh(np.arange(experts) + 0.2, before, height=0.36, color=PALE)
    right.barh(np.arange(experts) - 0.2, after, height=0.36, color=INK)
    right.axvline(even, color=MUTED, linewidth=1, linestyle=DASHED)
    right.set(xlim=(0, 1.1 * max(before)), xlabel="tokens of an expert")
    right.spines["left"].set_visible(False)
    name_ticks(right, "y", [])
    greedy, balanced = (scores.gather(1, (scores + bias).topk(TOP_K).indices).sum().item() for bias in (0, last))
    fig.note(0.02, 0.8, "D(b) above the best balanced assignment")
    fig.note(0.6, 0.8, f"loads without (grey) and with biases; even: {even:g}")
    gap = gaps[FALLING][-1]
    bound = (
        f"D(b) falls to {gap:.3f}% above the optimum" if gap < 0.1 else f"D(b) is still {gap:.1f}% above the optimum"
    )
    fig.title(f"{bound}; loads of {before.min()} to {before.max()} become {after.min()} to {after.max()}", y=0.91)
    fig.alt = (
        f"{tokens} tokens, {experts} experts, {TOP_K} chosen. Best balanced assignment: total affinity {optimum:.3f}; "
        f"without balancing {greedy:.3f}; with the biases after {DESCENT} steps {balanced:.3f}, loads {after.min()} to "
        f"{after.max()} instead of {before.min()} to {before.max()}. D(b) is above the optimum by "
        + ", ".join(f"{gap[-1]:.4f}% with {words}" for words, gap in gaps.items())
        + "."
    )
    return fig


@lru_cache
def _optimum() -> tuple[torch.Tensor, float]:
    scores = some_affinities()
    return scores, scores[best_assignment(scores, TOP_K)].sum().item()


@styled()
def draw_drift(result: dict, arms: tuple[str, ...] = ("bias 0.01", "bias 0.001")) -> Picture:
    """Draw the recorded biases of one layer over the steps, as they are and without their mean, for some arms."""
    curves = {}
    for arm in arms:
        (curve,) = [run["curve"] for run in runs_of(result, arm) if "curve" in run]
        curves[arm] = np.array(curve["bias"])
    fig = new_figure(height=0.95 + 2.1 * len(arms))
    height = fig.get_size_inches()[1]
    ends = (np.arange(len(next(iter(curves.values())))) + 1) * result["train"]["steps"] / len(curves[arms[0]])
    for row, (arm, biases) in enumerate(curves.items()):
        mean = biases.mean(axis=1)
        low = (0.6 + 2.1 * (len(arms) - 1 - row)) / height
        left, right = (fig.add_axes((x, low, 0.37, 1.5 / height)) for x in (0.11, 0.59))
        _biases(left, ends, biases, f"the biases: mean {mean[-1]:+.3f}")
        _biases(right, ends, biases - mean[:, None], f"without their mean: {np.ptp(biases[-1]):.3f} apart")
        left.set_ylabel(f"γ = {strength(arm)}", size=12)
        both = (*left.get_ylim(), *right.get_ylim())
        left.set_ylim(min(both), max(both))
        right.set_ylim(min(both), max(both))
        if row < len(arms) - 1:
            for ax in (left, right):
                ax.set_xlabel("")
                ax.tick_params(labelbottom=False)
    means = ", ".join(f"{biases[-1].mean():+.2f} at γ = {strength(arm)}" for arm, biases in curves.items())
    fig.title(f"The mean bias has no target: after {result['train']['steps']} steps it is {means}", y=1 - 0.35 / height)
    fig.alt = f"Biases of the middle layer after {result['train']['steps']} steps. " + "; ".join(
        f"γ = {strength(arm)}: mean {biases[-1].mean():+.3f}, {np.ptp(biases[-1]):.3f} apart, half way "
        f"{np.ptp(biases[len(biases) // 2]):.3f}"
        for arm, biases in curves.items()
    )
    return fig


def _biases(ax: Axes, steps: np.ndarray, biases: np.ndarray, title: str) -> None:
    ax.fill_between(steps, biases.min(axis=1), biases.max(axis=1), color=PALE, linewidth=0)
    some = np.argsort(biases[-1])[:: biases.shape[1] // 5]  # from the lowest to the highest
    ax.add_collection(LineCollection(_lines(steps, biases[:, some]), colors=MUTED, linewidths=0.9))
    ax.plot(steps, biases.mean(axis=1), color=INK, linewidth=2.5)
    ax.axhline(0, color=MUTED, linewidth=0.8, linestyle=DASHED)
    room = 0.06 * (biases.max() - biases.min())
    ax.set(xlim=(0, steps[-1]), ylim=(biases.min() - room, biases.max() + room), xlabel="step")
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.set_title(title, size=12, color=MUTED, pad=7)


def _lines(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the points of a line for each column of the values, (lines, steps, 2)."""
    return np.stack([np.broadcast_to(steps, values.T.shape), values.T], axis=-1)
