"""Who gets the tokens: each expert's load over the steps of a recorded run, and by domain (chapter 5)."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from minids.book.plots.c05_arms import long_name, short_name, told
from minids.book.plots.helpers import DASHED, label, name_ticks
from minids.book.plots.style import DOMAINS, INK, MUTED, Picture, new_figure, styled
from minids.book.recorded import runs_of
from minids.model.balance import dead_experts
from minids.validation import require

MAP, MOST = "cividis", 3  # of the even load, where the scale ends
LAST = 6  # bins at the end of a run, a tenth of it, whose load is called final
STARVED = 0.1  # of the even load
RECORDED = ("prose", "code")  # domains, in the order of recorded loads


class _Curve:
    """One recorded run: load over even load (experts, bins), experts sorted by their final load, busiest first."""

    def __init__(self, result: dict, arm: str):
        recorded = _recorded(result, arm)
        with_curve = ", ".join(dict.fromkeys(run["arm"] for run in result["runs"] if "curve" in run))
        require("arm", arm, bool(recorded), f"an arm with a recorded curve: {with_curve}")
        load = np.array(recorded[0]["load"], dtype=float)
        last = load[-LAST:].sum(axis=0)
        order = np.argsort(-last, kind="stable")
        self.relative = (load / load.mean(axis=1, keepdims=True)).T[order]
        self.final = last[order] / last.mean()
        self.dead = dead_experts(torch.tensor(last))
        self.starved = int((self.final < STARVED).sum())
        self.max_violation = np.array(recorded[0]["max_violation"])
        self.steps = result["train"]["steps"]
        self.ends = (np.arange(len(load)) + 0.5) * self.steps / len(load)  # the middles of the bins

    def draw(self, ax: Axes, violation: Axes, top: float) -> None:
        """Draw the load, and MaxVio above it up to `top`."""
        self.image = ax.imshow(
            self.relative, aspect="auto", cmap=MAP, vmin=0, vmax=MOST, interpolation="nearest",
            extent=(0, self.steps, len(self.relative) - 0.5, -0.5),
        )  # fmt: skip
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        name_ticks(ax, "y", [])
        ax.set(xlabel="step")
        violation.plot(self.ends, self.max_violation, color=INK)
        violation.set(xlim=(0, self.steps), ylim=(0, 1.05 * top))
        violation.tick_params(labelbottom=False)

    @property
    def violation(self) -> float:
        return float(self.max_violation[-LAST:].mean())


def _recorded(result: dict, arm: str) -> list[dict]:
    return [run["curve"] for run in runs_of(result, arm) if "curve" in run]


@styled()
def draw_load_map(result: dict, arm: str = "none") -> Picture:
    """Draw each expert's load over the steps of one run of an arm, MaxVio above it and the final load beside it.

    Raises ValueError if no run of the arm has a recorded curve.
    """
    curve = _Curve(result, arm)
    experts, busiest = len(curve.final), curve.final[0]
    every = [_Curve(result, other) for other in result["arms"] if _recorded(result, other)]  # one scale for all arms
    fig = new_figure(height=6.2)
    upper, lower = fig.add_axes((0.08, 0.69, 0.6, 0.14)), fig.add_axes((0.08, 0.1, 0.6, 0.535))
    curve.draw(lower, upper, max(other.max_violation.max() for other in every))
    upper.set_ylabel("MaxVio")
    lower.set_ylabel(f"{experts} experts, by their final load", labelpad=8)
    label(upper, f"{curve.violation:.2f}", (curve.steps, curve.violation), (5, 0))
    bars = fig.add_axes((0.745, 0.1, 0.235, 0.535))
    shades = curve.image.cmap(curve.image.norm(curve.final))
    bars.barh(range(experts), curve.final, height=0.82, color=shades, edgecolor=MUTED, linewidth=0.5)
    end = max(MOST, *(1.22 * other.final[0] for other in every))
    bars.set(xlim=(0, end), ylim=(experts - 0.5, -0.5), xlabel="final load / even load")
    bars.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    bars.xaxis.set_major_formatter(lambda x, _: f"{x:.0f}×")
    bars.axvline(1, color=INK, linewidth=1.2, linestyle=DASHED)
    bars.spines["left"].set_visible(False)
    name_ticks(bars, "y", [])
    label(bars, f"{busiest:.1f}×", (busiest, 0), (5, 0))
    if curve.starved:
        x, first = max(1.25, 0.3 * end), experts - curve.starved - 0.5
        bars.plot([x, x], [first + 0.15, experts - 0.65], color=INK, linewidth=1.2)
        said = f"{curve.starved} below {STARVED:g}×" + (f",\n{curve.dead} of them dead" if curve.dead else "")
        label(bars, said, (x, (first + experts - 0.5) / 2), (5, 0), ha="left")
    _scale(fig, curve, (0.745, 0.735, 0.2, 0.02))
    fig.title(_finding(curve, arm), y=0.945)
    fig.text(0.02, 0.9, _cost(curve.violation), size=12)
    fig.note(0.08, 0.845, "of a batch, mean of the layers", size=10)
    fig.note(0.08, 0.645, "load of the middle layer", size=10)
    fig.note(0.745, 0.645, "the last tenth of the steps", size=10)
    fig.alt = (
        f"{long_name(arm)}: load of {experts} experts of the middle layer over {curve.steps} steps. In the last tenth "
        f"the busiest gets {busiest:.2f} times the even load, the idlest {curve.final[-1]:.2f} times; "
        f"{curve.starved} get less than {STARVED:g} times and {curve.dead} none. MaxVio of a batch: "
        f"{curve.max_violation[0]:.2f} at first, {curve.violation:.2f} at last. {_cost(curve.violation)}."
    )
    return fig


def _finding(curve: _Curve, arm: str) -> str:
    if curve.starved:
        share = f"up to {curve.final[0]:.1f}× the even load, {curve.starved} almost none"
    else:
        share = f"{curve.final[-1]:.1f}× to {curve.final[0]:.1f}× the even load"
    return f"{long_name(arm)}: experts get {share}"


def _cost(violation: float) -> str:
    return f"With one expert a device, a step waits for the busiest: {1 + violation:.1f} times the time of an even load"


def _scale(fig: Picture, curve: _Curve, place: tuple[float, float, float, float]) -> None:
    bar = fig.colorbar(curve.image, cax=fig.add_axes(place), orientation="horizontal", ticks=range(MOST + 1))
    bar.ax.xaxis.set_major_formatter(lambda x, _: f"≥{x:.0f}×" if x >= MOST else f"{x:.0f}×")
    bar.ax.set_title("load / even load", size=11, loc="left", pad=5)
    bar.outline.set_visible(False)


@styled()
def draw_two_load_maps(result: dict, arms: tuple[str, str] = ("none", "bias 0.01")) -> Picture:
    """Draw the load of each expert over the steps for two arms side by side, on one scale, with MaxVio above.

    Raises ValueError as `draw_load_map` does.
    """
    curves = [_Curve(result, arm) for arm in arms]
    top = max(1.0, *(curve.max_violation.max() for curve in curves))
    fig = new_figure(height=5.4)
    for column, (arm, curve) in enumerate(zip(arms, curves, strict=True)):
        left = 0.075 + 0.46 * column
        violation, ax = fig.add_axes((left, 0.62, 0.38, 0.17)), fig.add_axes((left, 0.11, 0.38, 0.46))
        curve.draw(ax, violation, top)
        violation.set_title(long_name(arm), size=12, pad=6)
        label(violation, f"{curve.violation:.2f}", (curve.steps, curve.violation), (5, 0))
        if not column:
            violation.set_ylabel("MaxVio")
            ax.set_ylabel("experts, by their final load", labelpad=8)
        for row, share in ((0, curve.final[0]), (len(curve.final) - 1, curve.final[-1])):
            label(ax, f"{share:.1f}×", (curve.steps, row), (5, 0))
    _scale(fig, curves[0], (0.765, 0.86, 0.15, 0.02))
    one, other = (f"{1 + curve.violation:.1f}" for curve in curves)
    fig.title(f"With one expert a device, a step waits for the busiest: {one} → {other} times the even time", y=0.945)
    fig.note(0.02, 0.895, "MaxVio: of a batch, mean of the layers; map: load of the middle layer", size=10)
    fig.alt = "; ".join(
        f"{long_name(arm)}: MaxVio of a batch {curve.violation:.2f} at last, busiest expert of the middle layer "
        f"{curve.final[0]:.2f} times the even load, idlest {curve.final[-1]:.2f} times, {curve.dead} dead"
        for arm, curve in zip(arms, curves, strict=True)
    )
    return fig


@styled()
def draw_domain_load(
    result: dict, arms: tuple[str, ...] = ("none", "loss 0.1", "batch loss 0.1", "bias 0.01"), layer: int = 1
) -> Picture:
    """Draw each expert's load from prose (upwards) and from code (downwards) in one layer, for some arms.

    Loads are those of the first run of each arm; the bits are means over its runs and layers.
    """
    loads = {arm: _by_domain(runs_of(result, arm)[0]["load"][layer]) for arm in arms}
    known, shuffled = ({arm: told(result, arm)[i].mean for arm in arms} for i in (0, 1))
    fig = new_figure(height=1.2 + 1.02 * len(arms))
    height = fig.get_size_inches()[1]
    for row, (arm, load) in enumerate(loads.items()):
        ax = fig.add_axes((0.2, (height - 0.8 - 1.02 * (row + 1)) / height, 0.62, 0.98 / height))
        for domain, values, sign in zip(RECORDED, load, (1, -1), strict=True):
            ax.bar(range(load.shape[1]), sign * values.clip(max=MOST), width=0.8, color=DOMAINS[domain])
            ax.axhline(sign, color=INK, linewidth=0.9, linestyle=DASHED)
        ax.axhline(0, color="white", linewidth=1)
        ax.set(xlim=(-0.6, load.shape[1] - 0.4), ylim=(-MOST, MOST))
        ax.axis("off")
        where = {"transform": ax.transAxes, "va": "center", "size": 12}
        ax.text(-0.02, 0.5, long_name(arm).replace(", ", "\n"), ha="right", **where)
        ax.text(1.06, 0.6, f"{known[arm]:.3f} bits", **where)
        ax.text(1.06, 0.36, f"shuffled: {shuffled[arm]:.3f}", **{**where, "size": 10, "color": MUTED})
        if not row:
            label(ax, "1×", (load.shape[1] - 0.5, 1), (4, 0), color=MUTED, size=10)
            label(ax, "1×", (load.shape[1] - 0.5, -1), (4, 0), color=MUTED, size=10)
    most, least = max(known, key=known.get), min(known, key=known.get)
    finding = f"Bits about the domain: {known[most]:.3f} ({short_name(most)})"
    fig.title(f"{finding}, {known[least]:.3f} ({short_name(least)})", y=1 - 0.34 / height)
    for x, domain, way in zip((0.2, 0.33), RECORDED, ("up", "down"), strict=True):
        fig.text(x, 0.13 / height, f"{way}: {domain}", size=11, color=DOMAINS[domain])
    fig.note(
        0.47, 0.13 / height, f"a bar: one of {load.shape[1]} experts of layer {layer + 1}; cut at {MOST}× even load"
    )
    fig.note(0.86, 1 - 0.56 / height, "what an expert\ntells, in bits", size=10, va="top")
    fig.alt = f"Load by domain, in layer {layer + 1}, over the even load. " + "; ".join(
        f"{long_name(arm)}: prose {load[0].min():.2f} to {load[0].max():.2f}, code {load[1].min():.2f} to "
        f"{load[1].max():.2f}, an expert tells {known[arm]:.3f} bits, with shuffled labels {shuffled[arm]:.3f}"
        for arm, load in loads.items()
    )
    return fig


def _by_domain(load: list[list[int]]) -> np.ndarray:
    """Return loads over the even load (domains, experts), experts from those for prose to those for code."""
    relative = np.array(load, dtype=float)
    relative /= relative.mean(axis=1, keepdims=True)
    return relative[:, np.argsort(relative[1] - relative[0], kind="stable")]
