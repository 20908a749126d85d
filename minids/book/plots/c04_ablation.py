"""What experts are worth: the recorded experiment, and DeepSeekMoE's published losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from minids.book.plots.helpers import DASHED, across, draw_runs, label, write_row
from minids.book.plots.style import INK, LAYERS, MUTED, PALE, PARTS, Picture, new_figure, styled
from minids.book.recorded import STANDINGS, Measured, bits_of, compare, model_of, noise, runs_of
from minids.cost.parameters import count_parameters
from minids.cost.published import DEEPSEEKMOE_2B
from minids.units import short

SCORE = "prose_and_code"
DENSE, WHOLE, COARSE, FINE, HERO = "dense, active", "dense, total", "0 + 2 of 16", "0 + 8 of 64", "1 + 7 of 63"
LEFT_OUT = (1, 2, 4)  # sixteenths of the routed experts
# The published models: those like our arms in the order of our arms, then others.
PUBLISHED = (
    "dense", "dense × 16", "0 + 2 of 16", "0 + 2 of 16, × 1.5", "1 + 7 of 63", "2 + 6 of 62", "4 + 4 of 60",
    "0 + 1 of 16", "dense × 4",
)  # fmt: skip


@styled()
def draw_experts_ablation(result: dict) -> Picture:
    """Draw held-out bits per byte of every arm: a dot for each run, their mean and range, and how large the noise is.

    Runs of equal seeds stand at the same height in every row. The time is that of an arm's fastest run, which other
    programs on the machine have delayed least.
    """
    arms, floor = list(result["arms"]), noise(result)
    scores = {arm: bits_of(result, arm) for arm in arms}
    seconds = {arm: min(run["seconds"] for run in runs_of(result, arm)) for arm in arms}
    fig = new_figure(height=6)
    ax = _rows(fig, arms, below=2.2, top=0.74)
    write_row(ax, -0.85, {0.225: "total", 0.29: "active", 0.345: "time", 0.88: "mean", 0.975: "lower"}, color=MUTED)
    for row, arm in enumerate(arms):
        values, count = scores[arm], count_parameters(model_of(result, arm))
        draw_runs(ax, row, values.ravel(), _color(arm))
        wins = "" if arm == DENSE else f"{(values < scores[DENSE]).sum()} of {values.size}"
        time = f"{seconds[arm] / seconds[DENSE]:.1f}×"
        write_row(ax, row, {0.225: short(count.total), 0.29: short(count.active), 0.345: time})
        write_row(ax, row, {0.88: f"{values.mean():.3f}", 0.975: wins})
    ax.axvline(scores[DENSE].mean(), color=PALE, linewidth=1.5, zorder=0)
    ax.margins(x=0.05)
    left = ax.get_xlim()[0]
    for i, (seed, spread) in enumerate(floor.items()):
        row = len(arms) + 0.35 + 0.75 * i
        ax.barh(row, spread, left=left, height=0.3, color=MUTED)
        write_row(ax, row, {0.88: f"{spread:.3f}"})
        ax.text(0.02, row, f"between two seeds of the {seed}", size=11, color=MUTED, va="center", transform=across(ax))
    ax.set_xlim(left=left)
    ax.set_xlabel("held-out bits per byte, prose and code", size=11)
    fig.title(_against_dense(result), y=0.935)
    coarse, fine = (compare(result, HERO, other) for other in (COARSE, FINE))
    fig.title(f"{HERO} is {coarse} {COARSE} and {'' if fine == coarse else f'{fine} '}{FINE}", y=0.88)
    key = "dot: a run, equal seeds at equal heights; bar: mean; lower: than “dense, active”, in pairs of equal seeds"
    fig.note(0.02, 0.83, key, size=10.5)
    fig.alt = (
        f"Held-out bits per byte of prose and code, means of {scores[DENSE].size} runs; between two seeds of the "
        f"weights {floor['weights']:.3f}, of the data {floor['data']:.3f}. "
        + "; ".join(
            f"{arm}: {values.mean():.3f} ({values.min():.3f} to {values.max():.3f})" for arm, values in scores.items()
        )
    )
    return fig


def _against_dense(result: dict) -> str:
    mixtures = [arm for arm in result["arms"] if model_of(result, arm).uses_moe and "," not in arm]  # no controls
    verdicts = [compare(result, arm, DENSE) for arm in mixtures]
    counts = {verdict: verdicts.count(verdict) for verdict in STANDINGS if verdict in verdicts}
    dense = "dense at equal active size"
    if len(counts) == 1:
        return f"All {len(mixtures)} mixtures are {verdicts[0]} {dense}"
    first, *others = counts
    rest = ", ".join(f"{counts[verdict]} {verdict.removesuffix(' of').removesuffix(' from')}" for verdict in others)
    are = "is" if counts[first] == 1 else "are"
    return f"Of {len(mixtures)} mixtures, {counts[first]} {are} {first} {dense}, {rest}"


@styled()
def draw_published_experts() -> Picture:
    """Draw the published losses of DeepSeekMoE's 2B models: dense ones, mixtures as in our arms, and others."""
    fig = new_figure(height=5)
    ax = _rows(fig, PUBLISHED, below=0.2, top=0.8)
    write_row(ax, -0.95, {0.285: "total", 0.345: "active", 0.88: "loss"}, color=MUTED)
    for row, name in enumerate(PUBLISHED):
        model = DEEPSEEKMOE_2B[name]
        ax.plot(model["loss"], row, "o", color=_color(name), markersize=6)
        write_row(
            ax, row, {0.285: model.get("total", ""), 0.345: model.get("active", ""), 0.88: f"{model['loss']:.3f}"}
        )
    loss = {name: model["loss"] for name, model in DEEPSEEKMOE_2B.items()}
    ax.axvline(loss["dense"], color=PALE, linewidth=1.5, zorder=0)
    ax.margins(x=0.05)
    ax.set_xlabel("loss on the Pile", size=11)
    whole = "dense × 16"
    hero, coarse = (loss[name] - loss[whole] for name in (HERO, COARSE))
    fig.title(f"DeepSeekMoE at 2B: {HERO} loses {hero:.3f} to {whole}, {COARSE} loses {coarse:.3f}", y=0.935)
    key = "100B tokens, one run of each; total and active parameters as printed. dense × 16: as wide as all experts"
    fig.note(0.02, 0.885, key, size=10.5)
    fig.alt = "Published losses on the Pile: " + ", ".join(f"{name} {loss[name]:.3f}" for name in PUBLISHED)
    return fig


# ---------------------------------------------------------------------------------------------------
# Without some of the experts


@styled()
def draw_without(result: dict) -> Picture:
    """Draw what trained models lose without some of their experts: mean of the runs as a line, their range as a band.

    Left: without each token's best sixteenths of the routed experts (solid), or as many random ones (dashed). Middle:
    with fewer experts chosen. Right: without the shared expert, and one more routed expert chosen instead of it.
    """
    arms = [arm for arm in result["arms"] if all("without" in run for run in runs_of(result, arm))]
    colors = dict(zip(arms, (INK, LAYERS[1], LAYERS[2]), strict=True))
    fig = new_figure(height=4.7)
    left, middle = fig.add_axes((0.075, 0.17, 0.265, 0.48)), fig.add_axes((0.42, 0.17, 0.19, 0.48))
    for arm, color in colors.items():
        for kind, style in (("best", "-"), ("random", DASHED)):
            _band(left, {n: added(result, arm, f"{kind} {n}") for n in LEFT_OUT}, color, style)
        changes, chosen = runs_of(result, arm)[0]["without"], model_of(result, arm).num_experts_per_tok
        fewer = sorted(int(name.removeprefix("top ")) for name in changes if name.startswith("top "))
        lost = {k / chosen: added(result, arm, f"top {k}") for k in fewer}
        _band(middle, lost | {1: np.zeros(1)}, color, "-")
    left.set(xticks=LEFT_OUT, xlabel="sixteenths of the routed experts")
    middle.set(xlim=(0.05, 1.05), xticks=(0.25, 0.5, 0.75, 1), xlabel="chosen / as trained")
    middle.xaxis.set_major_formatter(lambda share, _: {0.25: "¼", 0.5: "½", 0.75: "¾"}.get(share, "1"))
    for ax in (left, middle):
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
        ax.xaxis.label.set_size(11)
    lost = _draw_shared(fig.add_axes((0.77, 0.17, 0.15, 0.48)), result, colors[HERO])
    fig.note(0.02, 0.69, "left out: best —, random – –")
    fig.note(0.375, 0.69, "fewer chosen")
    fig.note(0.645, 0.69, f"shared expert of {HERO}")
    fig.note(0.02, 0.765, "bits per byte added:")
    for arm, x in zip(arms, (0.22, 0.36, 0.5), strict=True):
        fig.text(x, 0.765, arm, size=12, color=colors[arm])
    best = {arm: added(result, arm, "best 1") for arm in arms}
    apart = Measured(tuple(best[HERO])).apart(Measured(tuple(best[COARSE])))
    fig.title(f"{HERO} loses {lost[SCORE].mean():.2f} bits per byte if one more routed expert replaces the shared one",
              y=0.92)  # fmt: skip
    lead = f"and {best[HERO].mean():.2f} without each token’s best sixteenth; {COARSE} loses"
    fig.title(f"{lead} {best[COARSE].mean():.2f} there{'' if apart else ': not separated'}", y=0.855)
    by_domain = ", ".join(f"{domain} {values.mean():.2f}" for domain, values in lost.items() if domain != SCORE)
    fig.alt = (
        f"Bits per byte added, means of {len(best[HERO])} runs. {HERO} with one more routed expert instead of the "
        f"shared one: {by_domain}. Without the best sixteenth of the routed experts: "
        + ", ".join(f"{arm} {values.mean():.2f}" for arm, values in best.items())
        + "; without a random one: "
        + ", ".join(f"{arm} {added(result, arm, 'random 1').mean():.2f}" for arm in arms)
    )
    return fig


def _draw_shared(ax: Axes, result: dict, color: str) -> dict[str, np.ndarray]:
    """Draw by domain what removing the shared expert costs; return what it costs if one more routed is chosen."""
    lost = {}
    for top, change in ((0, "no shared, one more"), (3, "no shared")):
        words = "one more routed instead" if "," in change else "nothing instead"
        ax.text(0.03, top - 0.75, words, size=11, va="center", ha="left", transform=ax.get_yaxis_transform())
        for row, domain in enumerate(("prose", "code"), start=top):
            values = added(result, HERO, change, domain)
            ax.barh(row, values.mean(), height=0.5, color=color, alpha=0.35)
            ax.plot([values.min(), values.max()], [row, row], color=color, linewidth=2)
            label(ax, f"{values.mean():.2f}", (max(values.max(), 0), row), (6, 0))
            ax.text(-0.05, row, domain, size=11, va="center", ha="right", transform=ax.get_yaxis_transform())
            lost |= {domain: values} if "," in change else {}
    lost[SCORE] = added(result, HERO, "no shared, one more")
    ax.set(ylim=(4.6, -1.2), yticks=[], xticks=[])
    ax.set_xlim(left=min(0, ax.get_xlim()[0]))
    ax.spines["bottom"].set_visible(False)
    return lost


def added(result: dict, arm: str, change: str, domain: str = SCORE) -> np.ndarray:
    """Return the bits per byte that a change adds to the trained models of an arm, one number for each run."""
    found = [run["without"] for run in runs_of(result, arm)]
    return np.array([one[change][domain] - one["as trained"][domain] for one in found])


def _band(ax: Axes, values: dict[float, np.ndarray], color: str, style) -> None:
    ax.fill_between(list(values), [v.min() for v in values.values()], [v.max() for v in values.values()], color=color,
                    alpha=0.2, linewidth=0)  # fmt: skip
    ax.plot(list(values), [v.mean() for v in values.values()], color=color, linestyle=style, marker="o", markersize=4)


# ---------------------------------------------------------------------------------------------------
# What the pictures share


def _color(arm: str) -> str:
    """Dense models are grey, mixtures with shared experts in another colour than those without."""
    if arm.startswith("dense"):
        return PARTS["dense"]
    return LAYERS[1] if arm.startswith("0") else LAYERS[2]


def _rows(fig: Picture, names: Sequence[str], below: float, top: float) -> Axes:
    """Return axes with a row for each name, and `below` more."""
    ax = fig.add_axes((0.37, 0.105, 0.44, top - 0.105))
    ax.set_ylim(len(names) - 0.5 + below, -0.6)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    for row, name in enumerate(names):
        mixture, comma, control = name.partition(", ")
        text = f"    {control}" if comma and mixture in names else name  # below the arm that it is a variant of
        ax.text(0.02, row, text, size=12, va="center", transform=across(ax))
    return ax
