"""The pictures of an ordinary transformer: rotation, attention, a falling loss, and the wall of the cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.patches import Circle

from minids.book.plots.helpers import DASHED, label, label_ends, log_scale, name_ticks
from minids.book.plots.style import DOMAINS, MUTED, PALE, PARTS, Picture, new_figure, styled
from minids.cost.cache import kv_cache_bytes, kv_cache_bytes_by_kind
from minids.cost.parameters import count_parameters
from minids.cost.published import REPORTS
from minids.model.config import ModelConfig
from minids.units import GIB, in_gib, in_k


@styled()
def draw_rotation(frequencies: Sequence[float], positions: int = 6) -> Picture:
    """Draw how the first, a middle and the last pair of a head turn, each over steps in which one can see it."""
    chosen = [0, len(frequencies) // 2, len(frequencies) - 1]
    said = []
    fig = new_figure(height=3.7)
    for column, pair in enumerate(chosen):
        frequency = float(frequencies[pair])
        step = 10 ** round(-np.log10(frequency))
        ax = fig.add_axes((0.03 + column * 0.33, 0.17, 0.28, 0.66))
        ax.add_patch(Circle((0, 0), 1, facecolor="none", edgecolor=PALE, linewidth=1.5))
        for t in range(positions):
            x, y = np.cos(t * step * frequency), np.sin(t * step * frequency)
            arrow = dict(arrowstyle="-|>", color=PARTS["rope"], linewidth=1.8, shrinkA=0, shrinkB=0)
            ax.annotate("", (x, y), (0, 0), arrowprops=arrow | {"alpha": 0.35 + 0.65 * t / (positions - 1)})
            side = "center" if abs(x) < 0.5 else "left" if x > 0 else "right"
            ax.text(1.1 * x, 1.16 * y, f"{t * step:,}", ha=side, va="center", size=10, color=MUTED)
        ax.set(xlim=(-1.75, 1.75), ylim=(-1.3, 1.3), aspect="equal")
        ax.axis("off")
        turn = 2 * np.pi / frequency
        fig.text(0.17 + column * 0.33, 0.06, f"pair {pair}: a turn takes {turn:,.0f} tokens", ha="center", size=11)
        said.append(f"pair {pair} by {frequency:.4f} radians a token, drawn every {step:,} tokens")
    times = float(frequencies[0]) / float(frequencies[chosen[-1]])
    fig.title(f"The first pair turns {times:,.0f} times as fast as the last")
    fig.alt = f"{positions} positions as turns: " + "; ".join(said)
    return fig


@styled()
def draw_attention(weights: np.ndarray, words: Sequence[str], title: str) -> Picture:
    """Draw attention weights (T, T): a row for each query, a column for each key, and the weight in the cell."""
    weights = np.asarray(weights, dtype=float)
    fig = new_figure(height=4.4)
    ax = fig.add_axes((0.2, 0.05, 0.52, 0.7))
    shown = np.ma.masked_equal(weights, 0)  # a weight of 0 stays white
    ax.imshow(shown, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(weights):
        if value:
            color = "white" if value < 0.5 else "black"
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", size=12, color=color)
    ax.xaxis.tick_top()
    for axis in "xy":
        name_ticks(ax, axis, words)
    ax.spines[:].set_visible(False)
    fig.title(title, y=0.93)
    fig.note(0.745, 0.68, "Each row sums to 1.\n\nA row asks, the\ncolumns answer.", va="top")
    fig.alt = "; ".join(
        f"{word}: " + " ".join(f"{value:.2f}" for value in row) for word, row in zip(words, weights, strict=True)
    )
    return fig


@styled()
def draw_caches(names: Sequence[str], tokens: int = 2**17) -> Picture:
    """Draw the cache of a long text in each model: as released, with keys and values for each head, or one for all."""
    colors = {"every head its own": PALE, "as released": PARTS["attention"], "one for all heads": PARTS["latent"]}
    said = []
    fig = new_figure(height=4.2)
    ax = fig.add_axes((0.12, 0.2, 0.76, 0.62))
    for row, name in enumerate(names):
        config = ModelConfig.preset(name)
        kinds = kv_cache_bytes_by_kind(config)
        sizes = [size * tokens / GIB for size in (kinds["MHA"], kv_cache_bytes(config), kinds["MQA"])]
        for i, (size, color) in enumerate(zip(sizes, colors.values(), strict=True)):
            y = row + (i - 1) * 0.27
            ax.barh(y, size, height=0.25, color=color)
            label(ax, f"{size:,.1f} GiB", (size, y), (4, 0))
        each = [f"{kind} {size:.1f} GiB" for kind, size in zip(colors, sizes, strict=True)]
        said.append(f"{REPORTS[name].name}: " + ", ".join(each))
    name_ticks(ax, "y", [REPORTS[name].name for name in names])
    ax.set(xticks=[])
    ax.invert_yaxis()
    ax.spines["bottom"].set_visible(False)
    big = ModelConfig.preset("deepseek-llm-67b")
    saved = kv_cache_bytes_by_kind(big)["MHA"] / kv_cache_bytes(big)
    left = kv_cache_bytes(big) * tokens / GIB
    fig.title(f"Shared by {saved:.0f} heads, LLM 67B’s cache is still {left:.1f} GiB at {in_k(tokens)} tokens")
    for x, (kind, color) in zip((0.12, 0.4, 0.62), colors.items(), strict=True):
        fig.note(x, 0.07, "■", size=13, color=color)
        fig.note(x + 0.025, 0.07, kind)
    fig.alt = f"Cache of {tokens:,} tokens. " + "; ".join(said)
    return fig


@styled()
def draw_wall(names: Sequence[str] = ("deepseek-llm-7b", "deepseek-llm-67b"), batch: int = 1) -> Picture:
    """Draw memory against context: the weights stay, the cache grows; a dot where it has become as large."""
    contexts = 2 ** np.arange(10, 18)
    many = "one conversation" if batch == 1 else f"{batch} conversations at once"
    said, ends, meeting = [], {}, {}
    fig = new_figure(height=4.6)
    ax = fig.add_axes((0.13, 0.16, 0.59, 0.68))
    for name, color in zip(names, (PARTS["rope"], PARTS["latent"]), strict=True):
        config, model = ModelConfig.preset(name), REPORTS[name].name
        weights = 2 * count_parameters(config).total / GIB
        caches = batch * kv_cache_bytes(config) * contexts / GIB
        ax.plot(contexts, caches, color=color)
        ax.axhline(weights, color=color, linewidth=1.3, linestyle=DASHED)
        meet = meeting[model] = weights * GIB / (batch * kv_cache_bytes(config))
        if contexts[0] <= meet <= contexts[-1]:
            ax.plot(meet, weights, "o", color=color, markersize=9)
        ends[f"{model}, weights {weights:.0f} GiB"] = (weights, color)
        ends[f"{model}, cache {caches[-1]:,.0f} GiB"] = (caches[-1], color)
        said.append(f"{model}: weights {weights:.1f} GiB, cache as large at {meet:,.0f} tokens")
    log_scale(ax, "x", in_k, [*contexts[::2].tolist(), contexts[-1]], base=2)
    log_scale(ax, "y", in_gib)
    ax.set(xlim=(contexts[0], contexts[-1]), ylim=(0.3, 5_000), xlabel="tokens of context, each conversation")
    label_ends(ax, ends, gap=0.28, lowest=-0.3, size=11)
    model, meet = next(iter(meeting.items()))
    fig.title(f"{model}, {many}: from {meet:,.0f} tokens on, the cache outweighs the model")
    fig.alt = f"{many}. " + "; ".join(said)
    return fig


@styled()
def draw_live_loss(tokens: Sequence[int], bits_per_byte: Sequence[float], before: float) -> Picture:
    """Draw how a model's bits per byte fall while it trains, from what they are when it knows nothing."""
    fig = new_figure(height=3.6)
    ax = fig.add_axes((0.08, 0.18, 0.74, 0.66))
    smooth = [np.mean(bits_per_byte[max(0, i - 9) : i + 1]) for i in range(len(bits_per_byte))]
    thousands = np.array(tokens) / 1e3
    ax.plot(thousands, bits_per_byte, color=PALE, linewidth=1)
    ax.plot(thousands, smooth, color=DOMAINS["prose"])
    ax.axhline(before, color=MUTED, linewidth=1, linestyle=DASHED)
    ax.set(xlim=(0, thousands[-1]), ylim=(min(2, 0.8 * smooth[-1]), before * 1.15))
    ax.set(xlabel="tokens trained on, thousands", ylabel="bits per byte")
    ends = {"all tokens alike": (before, MUTED), "the model": (smooth[-1], DOMAINS["prose"])}
    label_ends(ax, ends, gap=0, size=11)
    fig.title(f"Seconds of training save {before - smooth[-1]:.1f} bits on every byte of what it reads")
    fig.alt = "Bits per byte while the model trains, below those of guessing all tokens alike"
    return fig
