"""The pictures of an ordinary transformer: rotation, attention, training loss, the growing cache, a roofline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Arc, Circle, Wedge

from minids.book.plots.helpers import DASHED, label, label_ends, log_scale, name_ticks
from minids.book.plots.style import DOMAINS, INK, MUTED, PALE, PARTS, WIDTH, Picture, new_figure, styled
from minids.cost.cache import attention_kind, kv_cache_bytes, kv_cache_bytes_by_kind
from minids.cost.parameters import count_parameters
from minids.cost.published import H800_BF16_FLOPS, H800_BYTES_PER_SECOND, REPORTS
from minids.model.config import ModelConfig
from minids.model.rope import apply_rope, rope_frequencies, rope_rotation
from minids.units import GIB, in_gib, in_k

SERIES = (INK, "#8A6D00")  # two models; neither is the colour of a part


@styled()
def draw_rope(
    config: ModelConfig, positions: tuple[int, int] = (3, 1), shift: int = 4, pair: int = 8,
    query: tuple[float, float] = (1.05, 0.2), key: tuple[float, float] = (0.85, -0.5),
) -> Picture:  # fmt: skip
    """Draw one pair of a query and a key: as projected, rotated by their positions, and with both positions shifted.

    Below them, how far other pairs of the same query have rotated at the shifted position.
    """
    (t, j), d = positions, config.head_dim
    places = [("as projected", (0, 0)), (f"positions {t} and {j}", (t, j))]
    places.append((f"positions {t + shift} and {j + shift}", (t + shift, j + shift)))
    said, frequencies = [], rope_frequencies(config).numpy()
    fig = new_figure(height=5.3)
    for column, (name, where) in enumerate(places):
        ax = fig.add_axes((0.02 + column * 0.33, 0.395, 0.3, 0.46))
        q, k = (_rotated_pair(config, vector, pair, at) for vector, at in zip((query, key), where, strict=True))
        product = f"{q @ k:.2f}".replace("-", "−")
        apart = np.degrees(np.arctan2(*k[::-1]) - np.arctan2(*q[::-1])) % 360
        _draw_pair(ax, q, k, apart)
        rotated = " and ".join(
            f"{who} by {np.degrees(at * frequencies[pair]):.0f}°" for who, at in zip("qk", where, strict=True)
        )
        for y, text, weight in (
            (0.35, name, "normal"), (0.305, f"rotates {rotated}", "normal"), (0.255, f"q · k = {product}", "bold"),
        ):  # fmt: skip
            fig.text(0.17 + column * 0.33, y, text, ha="center", size=12, weight=weight)
        said.append(f"{name}: {rotated}, {min(apart, 360 - apart):.0f}° between them, q · k = {product}")
    others = [0, pair, d // 8, d // 4, 3 * d // 8, d // 2 - 1]
    fig.text(0.02, 0.175, f"The {d // 2} pairs rotate at different speeds. So far, at position {t + shift}:")
    for column, other in enumerate(others):
        angle = frequencies[other] * (t + shift)
        ax = fig.add_axes((0.03 + column * 0.162, 0.04, 0.05, 0.05 * WIDTH / 5.3))
        _draw_turned(ax, angle)
        turns = f"{angle / (2 * np.pi):.{2 if angle > 0.06 else 4}f}"
        fig.note(0.085 + column * 0.162, 0.065, f"pair {other}\n{turns} turns", size=10, linespacing=1.3)
        said.append(f"pair {other} rotates by {frequencies[other]:.4f} radians per position")
    fig.title(f"Both positions move by {shift}, both vectors rotate alike, and q · k stays {product}")
    fig.alt = "; ".join(said)
    return fig


def _rotated_pair(config: ModelConfig, numbers: tuple[float, float], pair: int, position: int) -> np.ndarray:
    """Return the two numbers of a pair after the model's own rotation at this position."""
    vector = torch.zeros(1, config.head_dim)
    places = [pair, pair + config.head_dim // 2]
    vector[0, places] = torch.tensor(numbers)
    return apply_rope(vector, rope_rotation(config, torch.tensor([position])), interleaved=False)[0, places].numpy()


def _draw_pair(ax: Axes, q: np.ndarray, k: np.ndarray, apart: float) -> None:
    """Draw a query and a key as arrows from the origin, with the angle between them."""
    ax.add_patch(Circle((0, 0), 1.3, facecolor="none", edgecolor=PALE, linewidth=1))
    ax.plot([-1.3, 1.3, 0, 0, 0], [0, 0, 0, 1.3, -1.3], color=PALE, linewidth=1, zorder=0)
    for vector, name, color in ((q, "q", INK), (k, "k", PARTS["rope"])):
        arrow = dict(arrowstyle="-|>", color=color, linewidth=2.2, shrinkA=0, shrinkB=0, mutation_scale=14)
        ax.annotate("", vector, (0, 0), arrowprops=arrow)
        ax.text(*(vector * (1 + 0.16 / np.linalg.norm(vector))), name, color=color, size=13, ha="center", va="center")
    angle_of = np.degrees(np.arctan2(q[1], q[0]))
    start, sweep = (angle_of, apart) if apart <= 180 else (angle_of + apart, 360 - apart)
    ax.add_patch(Arc((0, 0), 0.7, 0.7, theta1=start, theta2=start + sweep, color=MUTED, linewidth=1.3))
    middle = np.radians(start + sweep / 2)
    radius = 0.58 if sweep > 60 else 0.75
    at = radius * np.cos(middle), radius * np.sin(middle)
    ax.text(*at, f"{sweep:.0f}°", color=MUTED, size=11, ha="center", va="center")
    ax.set(xlim=(-1.45, 1.45), ylim=(-1.35, 1.35), aspect="equal")
    ax.axis("off")


def _draw_turned(ax: Axes, angle: float) -> None:
    """Draw a small dial with the sector that a pair has rotated over; full after a whole turn."""
    ax.add_patch(Circle((0, 0), 1, facecolor="white" if angle < 2 * np.pi else PALE, edgecolor=MUTED, linewidth=1))
    left = np.degrees(angle) % 360
    ax.add_patch(Wedge((0, 0), 1, 0, left, facecolor=PARTS["rope"], edgecolor="none"))
    ax.plot([0, np.cos(angle)], [0, np.sin(angle)], color=INK, linewidth=1.5)
    ax.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
    ax.axis("off")


@styled()
def draw_attention(weights: np.ndarray, words: Sequence[str], title: str) -> Picture:
    """Draw attention weights (T, T): a row for each query, a column for each key."""
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
    fig.note(0.745, 0.68, "Row: query\nColumn: key\n\nEach row sums to 1.", va="top")
    fig.alt = "; ".join(
        f"{word}: " + " ".join(f"{value:.2f}" for value in row) for word, row in zip(words, weights, strict=True)
    )
    return fig


@styled()
def draw_caches(names: Sequence[str], tokens: int = 2**17) -> Picture:
    """Draw the cache of a long text in each model with MHA, GQA of 8 groups and MQA; lit is the one as released."""
    said = []
    fig = new_figure(height=3.9)
    ax = fig.add_axes((0.1, 0.04, 0.72, 0.78))
    for row, name in enumerate(names):
        config = ModelConfig.preset(name)
        each = []
        for i, kind in enumerate(("MHA", "GQA", "MQA")):
            size, released = kv_cache_bytes_by_kind(config)[kind] * tokens / GIB, kind == attention_kind(config)
            ax.barh(row + (i - 1) * 0.27, size, height=0.25, color=PARTS["attention"] if released else PALE)
            each.append(f"{kind} {size:,.1f} GiB{', as released' if released else ''}")
            label(ax, each[-1], (size, row + (i - 1) * 0.27), (4, 0))
        said.append(f"{REPORTS[name].name}: " + "; ".join(each))
    name_ticks(ax, "y", [REPORTS[name].name for name in names])
    ax.set(xticks=[])
    ax.invert_yaxis()
    ax.spines["bottom"].set_visible(False)
    big = ModelConfig.preset("deepseek-llm-67b")
    saved = kv_cache_bytes_by_kind(big)["MHA"] / kv_cache_bytes(big)
    left = kv_cache_bytes(big) * tokens / GIB
    fig.title(f"GQA divides LLM 67B’s cache by {saved:.0f}; at {in_k(tokens)} tokens it still takes {left:.1f} GiB")
    fig.alt = f"Cache of {tokens:,} tokens. " + ". ".join(said)
    return fig


@styled()
def draw_wall(names: Sequence[str] = ("deepseek-llm-7b", "deepseek-llm-67b"), batch: int = 1) -> Picture:
    """Draw memory against context: the weights are constant, the cache grows; a dot where both are equal."""
    contexts = 2 ** np.arange(10, 18)
    many = "one conversation" if batch == 1 else f"{batch} conversations at once"
    said, ends, meeting = [], {}, {}
    fig = new_figure(height=4.6)
    ax = fig.add_axes((0.13, 0.16, 0.59, 0.68))
    for name, color in zip(names, SERIES, strict=True):
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
    fig.title(f"{model}, {many}: from {meet:,.0f} tokens on, the cache exceeds the weights")
    fig.alt = f"{many}. " + "; ".join(said)
    return fig


@styled()
def draw_roofline(points: dict[str, float]) -> Picture:
    """Draw the roofline of an H800, and what it can reach at each arithmetic intensity, in operations per byte read."""
    ridge = H800_BF16_FLOPS / H800_BYTES_PER_SECOND
    intensities = np.array([0.5, ridge, 20_000])
    said = []
    fig = new_figure(height=4.8)
    ax = fig.add_axes((0.1, 0.15, 0.86, 0.68))
    ax.plot(intensities, _attainable(intensities) / 1e12, color=INK, linewidth=2.5, zorder=1)
    log_scale(ax, "x", "{:,.0f}".format, [1, 10, 100, 1_000, 10_000])
    log_scale(ax, "y", "{:,.0f}".format, [1, 10, 100, 1_000])
    ax.set(xlim=(0.5, 20_000), ylim=(0.7, 3_000))
    ax.set(xlabel="arithmetic intensity: operations per byte read", ylabel="attainable TFLOP per second")
    ax.plot([ridge, ridge], [0.7, H800_BF16_FLOPS / 1e12], color=MUTED, linewidth=1, linestyle=DASHED)
    for text, height, shift, ha in (
        ("memory-bound", 1.7, -9, "right"), ("compute-bound", 1.7, 9, "left"),
        (f"ridge: {ridge:.0f} operations per byte", 1, 9, "left"),
    ):  # fmt: skip
        label(ax, text, (ridge, height), (shift, 0), ha=ha, color=MUTED, size=12)
    peak = H800_BF16_FLOPS / 1e12
    label(ax, f"arithmetic: {peak:,.0f} TFLOP/s", (20_000, peak), (-2, 9), ha="right")
    slope = ax.transData.transform([(1, 1), (100, 100)])
    tilt = np.degrees(np.arctan2(*(slope[1] - slope[0])[::-1]))
    bandwidth = f"memory: {H800_BYTES_PER_SECOND / 1e12:.2f} TB/s"
    ax.text(24, 103, bandwidth, size=11, rotation=tilt, rotation_mode="anchor", ha="center", va="bottom")
    _label_points(ax, points, ridge)
    for name, intensity in points.items():
        reached = _attainable(intensity) / 1e12
        ax.plot(intensity, reached, "o", color=INK, markersize=9)
        said.append(f"{name} has {intensity:,.1f} operations per byte and can reach {reached:,.1f} TFLOP/s")
    lowest = min(points, key=points.get)
    share = _attainable(points[lowest]) / H800_BF16_FLOPS
    fig.title(f"{lowest}: at most {share:.1%} of the arithmetic of an H800 can be used")
    fig.alt = f"Roofline of an H800, its ridge at {ridge:.0f} operations per byte. " + "; ".join(said)
    return fig


def _label_points(ax: Axes, points: dict[str, float], ridge: float) -> None:
    """Name the points: below the roof, one under the other; those just before the ridge above it, to the left."""
    below, above = np.inf, 0
    for name, intensity in sorted(points.items(), key=lambda item: -item[1]):
        text = f"{name}: {intensity:,.{1 if intensity < 100 else 0}f}"
        reached = _attainable(intensity) / 1e12
        near = 100 < intensity < ridge
        below = below if near else min(reached * (0.72 if intensity < ridge else 0.62), below * 0.62)
        above = (min(reached * 1.1, above * 0.62) if above else reached * 1.1) if near else above
        at = (min(intensity, 3_000), above if near else below)
        shift, ha = (-9, "right") if near else (10, "left") if intensity < ridge else (0, "center")
        ax.annotate(text, at, (shift, 0), textcoords="offset points", va="center", ha=ha, size=11)


def _attainable(intensity):
    """Return the most operations per second of an H800 at so many operations per byte that it reads."""
    return np.minimum(H800_BF16_FLOPS, H800_BYTES_PER_SECOND * intensity)


@styled()
def draw_live_loss(tokens: Sequence[int], bits_per_byte: Sequence[float], before: float) -> Picture:
    """Draw how a model's bits per byte fall in training, from those of equal probabilities for all tokens."""
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
    fig.title(f"Seconds of training save {before - smooth[-1]:.1f} bits per byte")
    fig.alt = "Bits per byte while the model trains, below those of guessing all tokens alike"
    return fig
