"""The pictures of three ways to attend over a cache: keep all keys and values, expand the latents, or absorb."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from minids.book.plots.helpers import DASHED, label, label_ends, log_scale
from minids.book.plots.style import INK, MUTED, PARTS, Picture, new_figure, styled
from minids.cost.attention import absorption_pays_from, expansion_pays_from, mla_multiplications
from minids.model.config import ModelConfig
from minids.units import SI, in_k, short

SHORTEST, LONGEST = 16, 2**17  # tokens of context
WAYS = {"full cache": MUTED, "expanded": INK, "absorbed": PARTS["latent"]}


@styled()
def draw_absorption(config: ModelConfig, new_tokens: int = 1) -> Picture:
    """Draw the multiplications of one layer's step against the context, for each way; a dot where two cross.

    Raises ValueError for more new tokens than half of the longest context drawn.
    """
    if new_tokens > LONGEST // 2:
        raise ValueError(f"new_tokens={new_tokens} is not possible: it must be at most {LONGEST // 2}.")
    contexts = np.unique(np.geomspace(max(new_tokens, SHORTEST), LONGEST, 60).astype(int))
    counts = [mla_multiplications(config, int(context), new_tokens) for context in contexts]
    lines = {way: [count[way] / 1e9 for count in counts] for way in WAYS}
    last = {way: line[-1] for way, line in lines.items()}
    fig = new_figure(height=4.4)
    ax = fig.add_axes((0.13, 0.16, 0.6, 0.68))
    for way, color in WAYS.items():
        ax.plot(contexts, lines[way], color=color)
    crossing = absorption_pays_from(config, new_tokens)
    if crossing is not None and contexts[0] < crossing < contexts[-1]:
        cost = mla_multiplications(config, round(crossing), new_tokens)["absorbed"] / 1e9
        ax.plot(crossing, cost, "o", color=WAYS["absorbed"], markersize=9)
    log_scale(ax, "x", in_k, [SHORTEST, 128, 1024, 8192, LONGEST], base=2)
    log_scale(ax, "y", _short)
    # The same axes for any number of new tokens, so that a slider moves the lines and not the scale.
    low = min(mla_multiplications(config, SHORTEST, 1).values()) / 1e9
    high = max(*last.values(), *(n / 1e9 for n in mla_multiplications(config, LONGEST, 1024).values()))
    ax.set(xlim=(SHORTEST, LONGEST), ylim=(low * 0.8, high * 1.4), xlabel="tokens of context")
    ends = {f"{way}: {_short(last[way])}": (last[way], color) for way, color in WAYS.items()}
    label_ends(ax, ends, gap=0.1 * np.log10(high / low))
    fig.title(_absorption_title(last, new_tokens, crossing))
    fig.note(0.13, 0.855, "multiplications of one layer’s attention in a step, projections left out")
    many = "one new token" if new_tokens == 1 else f"{new_tokens} new tokens"
    pays = "never costs less than expanding"
    if crossing is not None:
        pays = f"costs less than expanding beyond {crossing:,.0f} tokens"
    said = ", ".join(f"{way} {_short(last[way])} multiplications" for way in WAYS)
    fig.alt = f"{many}, one layer, {contexts[-1]:,} tokens of context: {said}; absorbing {pays}"
    return fig


def _absorption_title(last: dict[str, float], new_tokens: int, crossing: float | None) -> str:
    if crossing is None:
        return f"With {new_tokens} new tokens at once, expanding is always cheaper than absorbing"
    if new_tokens == 1:
        times = last["expanded"] / last["absorbed"]
        return f"One new token over {in_k(LONGEST)}: expanding multiplies {times:.0f} times as much as absorbing"
    return f"With {new_tokens} new tokens at once, absorbing is cheaper beyond {crossing:,.0f} tokens of context"


def _short(billions: float) -> str:
    return short(billions * 1e9, SI, zeros=False)


@styled()
def draw_crossing(config: ModelConfig, context: int, ratios: dict[int, Sequence[float]]) -> Picture:
    """Draw how much longer expanding takes than absorbing, by number of new tokens: measured, and by multiplications.

    `ratios` has the ratio of the two times of every repetition: drawn are their median and their range.
    """
    new_tokens = list(ratios)
    low, measured, high = (np.array([of(ratios[n]) for n in new_tokens]) for of in (min, np.median, max))
    counts = [mla_multiplications(config, context, new) for new in new_tokens]
    calculated = [count["expanded"] / count["absorbed"] for count in counts]
    pays = expansion_pays_from(config, context)
    fig = new_figure(height=3.9)
    ax = fig.add_axes((0.1, 0.18, 0.66, 0.64))
    ax.axhline(1, color=MUTED, linewidth=1)
    ax.axvline(pays, color=MUTED, linewidth=1, linestyle=DASHED)
    ax.plot(new_tokens, calculated, color=MUTED)
    ax.fill_between(new_tokens, low, high, color=PARTS["latent"], alpha=0.2, linewidth=0)
    ax.plot(new_tokens, measured, "o-", color=PARTS["latent"])
    log_scale(ax, "x", "{:.0f}".format, new_tokens, base=2)
    log_scale(ax, "y", "{:g}×".format, [0.1, 0.3, 1, 3, 10, 30, 100, 300])
    ax.set(xlabel="new tokens in one step", ylabel="expanding / absorbing", xlim=(new_tokens[0], new_tokens[-1]))
    ends = {"multiplications": (calculated[-1], MUTED), "time, measured": (measured[-1], PARTS["latent"])}
    label_ends(ax, ends, gap=0.22)
    by_clock = _crosses_one(new_tokens, measured)
    clock = "measured, it never did" if by_clock is None else f"measured, from {by_clock:.0f}"
    fig.title(f"By count, expanding pays from {pays:.0f} new tokens on; {clock}", y=0.91)
    fig.alt = (
        f"Over {context:,} tokens of context, by multiplications, expanding costs as much as absorbing with {pays:.0f} "
        "new tokens in one step, "
        + ", ".join(f"with {n} {c:.2f} times" for n, c in zip(new_tokens, calculated, strict=True))
    )
    return fig


def _crosses_one(new_tokens: Sequence[int], ratios: Sequence[float]) -> float | None:
    """Return where the ratios first fall below 1, between two measured points on logarithmic scales."""
    points = list(zip(np.log(new_tokens), np.log(ratios), strict=True))
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y0 > 0 >= y1:
            return float(np.exp(x0 + (x1 - x0) * y0 / (y0 - y1)))
    return None


@styled()
def draw_decoding(
    contexts: Sequence[int], milliseconds: dict[str, Sequence[Sequence[float]]], bytes_per_token: dict[str, int]
) -> Picture:
    """Draw the time of a decoding step in one layer against its context, for each way, and what each way caches.

    `milliseconds` has, for each way and context, the times of all repetitions: drawn are their median and their range.
    """
    fig = new_figure(height=4.3)
    ax = fig.add_axes((0.1, 0.16, 0.4, 0.66))
    medians = {way: [float(np.median(times)) for times in line] for way, line in milliseconds.items()}
    for way, line in milliseconds.items():
        ax.fill_between(contexts, *([of(times) for times in line] for of in (min, max)), color=WAYS[way], alpha=0.2,
                        linewidth=0)  # fmt: skip
        ax.plot(contexts, medians[way], "o-", color=WAYS[way], markersize=5)
    log_scale(ax, "x", in_k, contexts[::2] if len(contexts) > 4 else contexts, base=2)
    log_scale(ax, "y", "{:g} ms".format, [0.01, 0.1, 1, 10, 100, 1000, 10_000])
    ax.set(xlim=(contexts[0], contexts[-1]), xlabel="tokens of context")
    label_ends(ax, {way: (line[-1], WAYS[way]) for way, line in medians.items()}, gap=0.26)
    fig.note(0.1, 0.85, "attention of a step, one layer: median, range")
    bars = fig.add_axes((0.72, 0.16, 0.2, 0.66))
    for row, (way, size) in enumerate(bytes_per_token.items()):
        bars.barh(row, size, color=WAYS[way], height=0.5)
        label(bars, f"{way} {size:,}", (0, row - 0.3), (0, 2), ha="left", va="bottom")
    bars.set(xticks=[], yticks=[], ylim=(len(bytes_per_token) - 0.5, -0.75))
    bars.spines[:].set_visible(False)
    fig.note(0.72, 0.85, "bytes cached a token")
    share = bytes_per_token["absorbed"] / bytes_per_token["full cache"]
    slower = medians["expanded"][-1] / medians["absorbed"][-1]
    fig.title(f"Absorbed ran {slower:.0f} times as fast as expanded, on {share:.0%} of the full cache’s bytes", y=0.93)
    fig.alt = "Cached per token in one layer: " + ", ".join(f"{way} {n:,} bytes" for way, n in bytes_per_token.items())
    return fig
