"""The pictures of three ways to attend over a cache: keep everything, expand the latents, or absorb."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from minids.book.plots.style import INK, MUTED, PARTS, Picture, new_figure, spread, styled
from minids.cost.accounting import absorption_pays_from, expansion_pays_from, mla_multiplications
from minids.model.config import ModelConfig

LONGEST = 2**17  # tokens of context
WAYS = {"full cache": INK, "expanded": PARTS["rope"], "absorbed": PARTS["latent"]}


def draw_absorption(config: ModelConfig, new_tokens: int = 1) -> Picture:
    """Draw the multiplications of one layer's step against the context, for each way; a dot where two cross.

    Raises ValueError for more new tokens than half of the longest context drawn.
    """
    if new_tokens > LONGEST // 2:
        raise ValueError(f"new_tokens={new_tokens} is not possible: it must be at most {LONGEST // 2}.")
    first = max(new_tokens, 16)
    contexts = np.unique(np.geomspace(first, LONGEST, 60).astype(int))
    lines = {
        way: np.array([mla_multiplications(config, int(context), new_tokens)[way] for context in contexts]) / 1e9
        for way in WAYS
    }
    last = {way: line[-1] for way, line in lines.items()}
    with styled():
        fig = new_figure(height=4.4)
        ax = fig.add_axes((0.13, 0.16, 0.6, 0.68))
        for way, color in WAYS.items():
            ax.plot(contexts, lines[way], color=color)
        crossing = absorption_pays_from(config, new_tokens)
        if crossing is not None and contexts[0] < crossing < contexts[-1]:
            cost = mla_multiplications(config, round(crossing), new_tokens)["absorbed"] / 1e9
            ax.plot(crossing, cost, "o", color=WAYS["absorbed"], markersize=9)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        low, high = min(line.min() for line in lines.values()), max(last.values())
        decades = np.log10(high / low)
        ax.set(xlim=(contexts[0], contexts[-1]), ylim=(low * 0.8, high * 1.4), xlabel="tokens of context")
        heights = spread({way: np.log10(value) for way, value in last.items()}, gap=0.1 * decades, lowest=-9)
        for way, height in heights.items():
            ax.annotate(f"{way}: {_short(last[way])}", (contexts[-1], 10**height), (8, 0), va="center", size=12,
                        textcoords="offset points", color=WAYS[way], annotation_clip=False)  # fmt: skip
        ticks = [t for t in (16, 128, 1024, 8192, 2**17) if t >= contexts[0]]
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1024:.0f}K" if x >= 1024 else f"{x:.0f}"))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _short(y)))
        ax.yaxis.set_minor_locator(NullLocator())
        fig.text(0.02, 0.92, _absorption_title(last, new_tokens, crossing), size=14)
        fig.text(
            0.13,
            0.855,
            "multiplications of one layer’s attention in a step, projections left out",
            size=11,
            color=MUTED,
        )
    many = "one new token" if new_tokens == 1 else f"{new_tokens} new tokens"
    fig.alt = f"{many}, one layer, {contexts[-1]:,} tokens of context: " + ", ".join(
        f"{way} {_short(value)} multiplications" for way, value in last.items()
    ) + (f"; absorbing costs less than expanding beyond {crossing:,.0f} tokens" if crossing else
         "; absorbing never costs less than expanding")  # fmt: skip
    return fig


def _absorption_title(last: dict[str, float], new_tokens: int, crossing: float | None) -> str:
    many = f"{new_tokens} new tokens at once"
    if crossing is None:
        return f"With {many}, expanding is always cheaper than absorbing"
    if new_tokens == 1:
        times = last["expanded"] / last["absorbed"]
        return f"One new token over {LONGEST // 1024}K: expanding multiplies {times:.0f} times as much as absorbing"
    return f"With {many}, absorbing is cheaper beyond {crossing:,.0f} tokens of context"


def _short(billions: float) -> str:
    """Return a number of billions in three digits and the unit that fits, as in 5.39G."""
    digits, exponent = f"{billions * 1e9:.2e}".split("e")
    units, rest = divmod(int(exponent), 3)
    return f"{float(digits) * 10**rest:g}{' kMGTPE'[units].strip()}"


def draw_crossing(config: ModelConfig, context: int, ratios: dict[int, float]) -> Picture:
    """Draw how long expanding takes over absorbing, by number of new tokens, as measured and by multiplications."""
    new_tokens, measured = list(ratios), list(ratios.values())
    counts = [mla_multiplications(config, context, new) for new in new_tokens]
    calculated = [count["expanded"] / count["absorbed"] for count in counts]
    pays = expansion_pays_from(config, context)
    with styled():
        fig = new_figure(height=3.9)
        ax = fig.add_axes((0.1, 0.18, 0.66, 0.64))
        ax.axhline(1, color=MUTED, linewidth=1)
        ax.axvline(pays, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        ax.plot(new_tokens, calculated, color=MUTED)
        ax.plot(new_tokens, measured, "o-", color=PARTS["latent"])
        ends = {"multiplications": (calculated[-1], MUTED), "time, measured": (measured[-1], PARTS["latent"])}
        for label, height in spread({k: np.log10(v) for k, (v, _) in ends.items()}, gap=0.16, lowest=-9).items():
            ax.annotate(label, (new_tokens[-1], 10**height), (8, 0), textcoords="offset points", va="center", size=12,
                        color=ends[label][1], annotation_clip=False)  # fmt: skip
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set(xlabel="new tokens in one step", ylabel="expanding / absorbing", xlim=(new_tokens[0], new_tokens[-1]))
        ax.xaxis.set_major_locator(FixedLocator(list(new_tokens)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
        ax.yaxis.set_major_locator(FixedLocator([0.1, 0.3, 1, 3, 10, 30, 100, 300]))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}×"))
        by_clock = _crosses_one(new_tokens, measured)
        clock = "the clock does not see it" if by_clock is None else f"by the clock from about {by_clock:.0f}"
        fig.text(0.02, 0.91, f"By count, expanding pays from {pays:.0f} new tokens on; {clock}", size=14)
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


def draw_decoding(
    contexts: Sequence[int], milliseconds: dict[str, Sequence[float]], bytes_per_token: dict[str, int]
) -> Picture:
    """Draw the time of a decoding step in one layer against its context, for each way, and what each way keeps."""
    with styled():
        fig = new_figure(height=4.3)
        ax = fig.add_axes((0.1, 0.16, 0.4, 0.66))
        for way, line in milliseconds.items():
            ax.plot(contexts, line, "o-", color=WAYS[way], markersize=5)
        ends = {way: np.log10(line[-1]) for way, line in milliseconds.items()}
        for way, height in spread(ends, gap=0.26, lowest=-9).items():
            ax.annotate(way, (contexts[-1], 10**height), (8, 0), textcoords="offset points", va="center", size=12,
                        color=WAYS[way], annotation_clip=False)  # fmt: skip
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set(xlim=(contexts[0], contexts[-1]), xlabel="tokens of context")
        ax.xaxis.set_major_locator(FixedLocator(list(contexts)[::2] if len(contexts) > 4 else list(contexts)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1024:g}K" if x >= 1024 else f"{x:.0f}"))
        ax.yaxis.set_major_locator(FixedLocator([0.01, 0.1, 1, 10, 100, 1000, 10_000]))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g} ms"))
        fig.text(0.1, 0.85, "attention of a step, one layer (measured)", size=11, color=MUTED)
        bars = fig.add_axes((0.72, 0.16, 0.2, 0.66))
        for row, (way, size) in enumerate(bytes_per_token.items()):
            bars.barh(row, size, color=WAYS[way], height=0.5)
            bars.annotate(f"{way} {size:,}", (0, row - 0.3), (0, 2), textcoords="offset points", size=11, va="bottom",
                          annotation_clip=False)  # fmt: skip
        bars.set(xticks=[], yticks=[], ylim=(len(bytes_per_token) - 0.5, -0.75))
        bars.spines[:].set_visible(False)
        fig.text(0.72, 0.85, "bytes kept of a token", size=11, color=MUTED)
        share = bytes_per_token["absorbed"] / bytes_per_token["full cache"]
        slower = milliseconds["expanded"][-1] / milliseconds["absorbed"][-1]
        title = f"Absorbed runs {slower:.0f} times as fast as expanded, on {share:.0%} of the full cache’s bytes"
        fig.text(0.02, 0.93, title, size=14)
    fig.alt = "Kept of a token in one layer: " + ", ".join(f"{way} {n:,} bytes" for way, n in bytes_per_token.items())
    return fig
