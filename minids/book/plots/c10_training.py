"""Two pictures of a training run: how the loss fell, and how evenly the experts were used."""

import numpy as np

from minids.book.plots.helpers import label_ends
from minids.book.plots.style import DOMAINS, INK, LAYERS, Picture, new_figure, styled


@styled()
def draw_loss(records: list[dict], report: dict) -> Picture:
    """Draw bits per byte by domain against tokens trained, with held-out results and the 5-gram beside them."""
    tokens_per_step = report["tokens"] / len(records)
    held_out, baseline = report["bits_per_byte"], report["baseline_bits_per_byte"]
    domains = [domain for domain in held_out if domain in DOMAINS]
    unit, name = (1e6, "millions") if report["tokens"] >= 1e5 else (1e3, "thousands")
    end = report["tokens"] / unit
    fig = new_figure()
    ax = fig.add_axes((0.09, 0.2, 0.66, 0.68))
    for domain in domains:
        served = [(r["step"], r["bits_per_byte"][domain]) for r in records if domain in r["bits_per_byte"]]
        if served:  # a run of few steps may not have come to this domain
            steps, values = _smooth(served)
            ax.plot((steps + 1) * tokens_per_step / unit, values, color=DOMAINS[domain])
        ax.plot(end * 1.015, held_out[domain], "o", color=DOMAINS[domain], clip_on=False)
        ax.hlines(baseline[domain], 0, end, color=DOMAINS[domain], linestyles=(0, (2, 3)), linewidth=1.2)
    ax.set(xlim=(0, end), xlabel=f"tokens trained on, {name}", ylabel="bits per byte, lower is better")
    # Arithmetic's 5-gram may stand off the scale: it remembers answers, and these problems are new.
    top = 1.6 * max(min(baseline[d] for d in domains), *(held_out[d] for d in domains))
    bottom = 0.8 * min(held_out[d] for d in domains)
    ax.set_ylim(bottom, top)
    ends = {f"{d}  {held_out[d]:.2f}\n5-gram  {baseline[d]:.2f}": (held_out[d], DOMAINS[d]) for d in domains}
    height = top - bottom
    label_ends(ax, ends, gap=0.15 * height, lowest=bottom + 0.07 * height, x=end * 1.04, shift=0)
    gains = {d: 1 - held_out[d] / baseline[d] for d in domains if d != "arithmetic"}
    sides = [f"{d} {abs(gain):.0%} {'below' if gain >= 0 else 'above'}" for d, gain in gains.items()]
    title = ", ".join(sides) + " a byte 5-gram on held-out text"
    ax.set_title(title[0].upper() + title[1:])
    key = "line: training, whole rows   dot: held-out, second half of a row   dotted: 5-gram on the same"
    fig.note(0.09, 0.03, key, size=10)
    fig.alt = "Bits per byte on held-out text, model against 5-gram: " + ", ".join(
        f"{d} {held_out[d]:.2f} against {baseline[d]:.2f}" for d in domains
    )
    return fig


@styled()
def draw_expert_load(records: list[dict], layer_names: list[str]) -> Picture:
    """Draw MaxVio of each MoE layer over the steps, and below it each expert's load in the first MoE layer."""
    violations = np.array([r["max_violation"] for r in records], dtype=float)  # NaN for None: nothing was routed
    load = np.array([r["load"][0] for r in records], dtype=float)
    bins = np.array_split(np.arange(len(records)), min(120, len(records)))  # single steps are too noisy to read
    binned = np.array([load[steps].sum(axis=0) for steps in bins])
    relative = (binned / binned.mean(axis=1, keepdims=True)).T
    last_step = max(1, len(records) - 1)
    fig = new_figure(height=6)
    upper = fig.add_axes((0.08, 0.57, 0.74, 0.34))
    ends = {}
    for i, name in enumerate(layer_names):
        routed = [(step, value) for step, value in enumerate(violations[:, i]) if np.isfinite(value)]
        if not routed:
            continue
        steps, values = _smooth(routed)
        color = LAYERS[i % len(LAYERS)]
        upper.plot(steps, values, color=color)
        ends[name] = (values[-1], color)
    upper.set(xlim=(0, last_step), ylabel="MaxVio")
    upper.set_ylim(0, None)
    upper.tick_params(labelbottom=False)
    top = upper.get_ylim()[1]
    label_ends(upper, ends, gap=0.11 * top, lowest=0.05 * top, x=1.015 * last_step, shift=0)
    edge = max(1, min(20, len(records) // 2))
    first, last = np.nanmean(violations[:edge]), np.nanmean(violations[-edge:])
    upper.set_title(f"The busiest expert: from {1 + first:.1f} times the average load to {1 + last:.1f} times")
    lower = fig.add_axes((0.08, 0.1, 0.74, 0.42))
    image = lower.imshow(
        relative, aspect="auto", cmap="cividis", vmin=0, vmax=2, interpolation="nearest",
        extent=(0, last_step, len(relative) - 0.5, -0.5),
    )  # fmt: skip
    lower.set(xlabel="step", ylabel=f"expert, {layer_names[0]}")
    lower.spines[:].set_visible(False)
    bar = fig.colorbar(image, cax=fig.add_axes((0.85, 0.1, 0.018, 0.36)), ticks=[0, 1, 2])
    bar.ax.yaxis.set_major_formatter(lambda x, _: f"{x:.0f}×" if x < 2 else "≥ 2×")
    bar.set_label("load / average", color=INK)
    bar.outline.set_visible(False)
    fig.alt = (
        f"Mean MaxVio over {len(layer_names)} MoE layers: {first:.2f} in the first {edge} steps, "
        f"{last:.2f} in the last {edge}. "
        f"Load of the {len(relative)} experts of {layer_names[0]} relative to the average, step by step."
    )
    return fig


def _smooth(points: list[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and a centred running mean over about a thirtieth of the run."""
    steps, values = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    half = max(1, len(values) // 60)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return steps, (sums[high] - sums[low]) / (high - low)
