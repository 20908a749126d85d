"""Loss against compute for dense models and mixtures of several sizes, and what a straight line through them says."""

from __future__ import annotations

import numpy as np

from minids.book.plots.helpers import DASHED, label_ends, log_scale
from minids.book.plots.style import MUTED, PARTS, Picture, new_figure, styled
from minids.book.recorded import STANDINGS, Measured, bits_of, compare, model_of
from minids.cost.flops import training_flops_per_token

COLORS = {"dense": PARTS["dense"], "MoE": PARTS["routed"]}  # by kind: arms are called "dense S"
SIDE = {"dense": 0.98, "MoE": 1.02}  # where the dots are drawn, so that both kinds are seen


@styled()
def draw_scaling(result: dict) -> Picture:
    """Draw held-out bits per byte against training FLOPs, both logarithmic: a dot for each run, a fitted line."""
    fig = new_figure()
    ax = fig.add_axes((0.09, 0.15, 0.69, 0.66))
    sizes, ends = sizes_of(result), {}
    everything = {kind: bits_by_size(result, kind) for kind in COLORS}
    for kind, bits in everything.items():
        compute = compute_by_size(result, kind)
        exponent = slopes(result, kind).mean
        middle = np.log(bits).mean() - exponent * np.log(compute).mean()
        ax.plot(compute, np.exp(middle) * compute**exponent, color=COLORS[kind], linewidth=1.5, linestyle=DASHED)
        aside = compute * SIDE[kind]
        ax.plot(np.repeat(aside, bits.shape[1]), bits.ravel(), "o", color=COLORS[kind], markersize=5)
        ends[f"{kind}\n∝ compute$^{{{exponent:.3f}}}$"] = (bits[-1].mean(), COLORS[kind])
    log_scale(ax, "x", lambda flops: f"10$^{{{np.log10(flops):.0f}}}$")
    low, high = np.min(list(everything.values())), np.max(list(everything.values()))
    log_scale(ax, "y", lambda bits: f"{bits:.1f}", ticks=np.arange(np.floor(10 * low), np.ceil(10 * high) + 1) / 10)
    ax.set_ylim(0.985 * low, 1.015 * high)
    label_ends(ax, ends, gap=0.14 * np.log10(1.03 * high / low), size=12)
    ax.set(xlabel="FLOPs of training", ylabel="held-out bits per byte")
    fig.title(_title(result, sizes), y=0.93)
    runs = bits.shape[1]
    fig.note(
        0.09, 0.86, f"dot: a run, {runs} of each; one token per active parameter; dashed: a straight line", color=MUTED
    )
    fig.alt = "Bits per byte by size: " + "; ".join(
        f"{kind} {', '.join(f'{size} {values.mean():.3f}' for size, values in zip(sizes, bits, strict=True))}"
        for kind, bits in everything.items()
    ) + "; exponents " + ", ".join(f"{kind} {slopes(result, kind).mean:.3f}" for kind in COLORS)  # fmt: skip
    return fig


def _title(result: dict, sizes: list[str]) -> str:
    """Say at how many sizes the mixture is ahead of the dense model and behind it, and by how much at most."""
    said = []
    for standing, sign in zip(STANDINGS, (1, -1), strict=False):
        apart = [size for size in sizes if compare(result, f"MoE {size}", f"dense {size}") == standing]
        gains = [bits_of(result, f"dense {size}").mean() - bits_of(result, f"MoE {size}").mean() for size in apart]
        if apart:
            most = max(sign * gain for gain in gains)
            said.append(f"{standing.removesuffix(' of')} at {len(apart)} (up to {most:.2f} bits)")
    return f"The mixture at {len(sizes)} sizes: {', '.join(said) or 'never separated from the dense model'}"


def sizes_of(result: dict) -> list[str]:
    """Return the names of the sizes, from the smallest to the largest."""
    return [arm.removeprefix("dense ") for arm in result["arms"] if arm.startswith("dense ")]


def compute_by_size(result: dict, kind: str) -> np.ndarray:
    """Return the operations of each size's training, in FLOPs."""
    found = []
    for size in sizes_of(result):
        train = result["train"] | result["arms"][f"{kind} {size}"]["train"]
        tokens = train["steps"] * train["batch_size"] * train["sequence_length"]
        found.append(tokens * training_flops_per_token(model_of(result, f"{kind} {size}"), train["sequence_length"]))
    return np.array(found)


def bits_by_size(result: dict, kind: str) -> np.ndarray:
    """Return the held-out bits per byte of a kind, (sizes, runs)."""
    return np.stack([bits_of(result, f"{kind} {size}").ravel() for size in sizes_of(result)])


def slopes(result: dict, kind: str) -> Measured:
    """Return the exponent of each seed's runs: the slope of a straight line through log bits over log compute."""
    log_compute = np.log(compute_by_size(result, kind))
    return Measured(tuple(np.polyfit(log_compute, np.log(bits), 1)[0].item() for bits in bits_by_size(result, kind).T))
