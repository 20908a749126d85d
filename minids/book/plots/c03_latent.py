"""The pictures of what latents leave in a cache, and of the two parts of their scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from minids.book.plots.c02_baseline import GIB
from minids.book.plots.style import INK, MUTED, PALE, PAPER, PARTS, Picture, new_figure, styled
from minids.cost.accounting import attention_kind, kv_cache_bytes, kv_cache_bytes_by_kind
from minids.cost.published import REPORTS
from minids.model.config import ModelConfig

KIND_COLORS = {"MHA": INK, "GQA": PARTS["shared"], "MQA": PARTS["head"], "MLA": PARTS["latent"]}


def draw_cache_kinds(names: Sequence[str], tokens: int = 2**17) -> Picture:
    """Draw, for each model's shape, the cache of a long text with each kind of attention; its own kind is filled."""
    said, ratios = [], {}
    with styled():
        fig = new_figure(height=1.3 + 0.52 * len(names))
        ax = fig.add_axes((0.12, 0.13, 0.83, 0.69))
        for row, name in enumerate(names):
            config = ModelConfig.preset(name)
            sizes = {kind: size * tokens / GIB for kind, size in kv_cache_bytes_by_kind(config).items()}
            own = attention_kind(config)
            ax.plot([min(sizes.values()), max(sizes.values())], [row, row], color=PALE, linewidth=2, zorder=1)
            for kind, size in sizes.items():
                color = KIND_COLORS[kind]
                ax.plot(size, row, "o", markersize=11 if kind == own else 8, color=color if kind == own else PAPER,
                        markeredgecolor=color, markeredgewidth=2, zorder=2)  # fmt: skip
            ax.annotate(f"{sizes[own]:,.1f}", (sizes[own], row), (0, 9), textcoords="offset points", ha="center",
                        size=11, color=INK)  # fmt: skip
            if own == "MLA":
                ratios[name] = sizes["MHA"] / sizes["MLA"]
            said.append(f"{REPORTS[name].name} ({own}): " + ", ".join(f"{k} {v:,.1f}" for k, v in sizes.items()))
        ax.set_xscale("log")
        ax.set(xlim=(1, 1000), ylim=(len(names) - 0.4, -0.75))
        ax.set_yticks(range(len(names)), [REPORTS[name].name for name in names])
        ax.tick_params(axis="y", length=0, labelcolor=INK, labelsize=12)
        ax.spines["left"].set_visible(False)
        ax.xaxis.set_major_locator(FixedLocator([1, 10, 100, 1000]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f} GiB"))
        for x, (kind, color) in zip((0.12, 0.23, 0.43, 0.6), KIND_COLORS.items(), strict=True):
            label = {"GQA": "GQA, 8 groups", "MLA": "MLA;  filled: as released"}.get(kind, kind)
            fig.text(x, 0.855, "●", size=12, color=color)
            fig.text(x + 0.022, 0.857, label, size=11, color=MUTED)
        title = f"The cache of {tokens // 1024}K tokens, with each kind of attention"
        if ratios:
            most = max(ratios, key=ratios.get)
            less = f"{REPORTS[most].name} keeps {ratios[most]:.0f} times less than with MHA"
            title = f"Of {tokens // 1024}K tokens {less}"
        fig.text(0.02, 1 - 0.3 / (1.3 + 0.52 * len(names)), title, size=14)
    fig.alt = f"Cache of {tokens:,} tokens in GiB. " + "; ".join(said)
    return fig


def draw_latent_budget(config: ModelConfig, tokens: int = 2**17) -> Picture:
    """Draw what a model's latents cost in cache beside groups of keys and values, from one group to one per head."""
    c = config
    own, width = kv_cache_bytes(c), c.v_head_dim
    per_group = kv_cache_bytes_by_kind(c)["MQA"]
    groups = own / per_group
    counts = [2**i for i in range(c.num_attention_heads.bit_length()) if c.num_attention_heads % 2**i == 0]
    with styled():
        fig = new_figure(height=2.5)
        ax = fig.add_axes((0.06, 0.33, 0.88, 0.42))
        ax.set_xscale("log")
        for count in counts:
            size = count * per_group * tokens / GIB
            ax.plot([size, size], [0, 0.36], color=MUTED, linewidth=1.5)
            ax.annotate(f"{count}", (size, 0.36), (0, 3), textcoords="offset points", ha="center", size=11, color=MUTED)
        mine = own * tokens / GIB
        ax.plot([mine, mine], [0, 1.25], color=PARTS["latent"], linewidth=3, clip_on=False)
        low, high = counts[0] * per_group * tokens / GIB / 2, counts[-1] * per_group * tokens / GIB * 1.3
        ax.set(xlim=(min(low, mine / 1.2), max(high, mine * 1.2)), ylim=(0, 1.3), yticks=[])
        ax.spines["left"].set_visible(False)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_locator(FixedLocator([1, 10, 100, 1000]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f} GiB"))
        right = mine < (low * high) ** 0.5
        ax.annotate(f"MLA {c.kv_lora_rank} + {c.qk_rope_head_dim}: {mine:,.1f} GiB", (mine, 1.02),
                    (6 if right else -6, 0), textcoords="offset points", ha="left" if right else "right",
                    size=12, color=PARTS["latent"])  # fmt: skip
        marks = (
            f"grey: so many groups of keys and values, {width} wide each; {c.num_attention_heads} is one for every head"
        )
        fig.text(0.06, 0.05, f"{marks}. Cache of {tokens // 1024}K tokens.", size=11, color=MUTED)
        kept = c.kv_lora_rank + c.qk_rope_head_dim
        title = f"{kept} numbers a token and layer are as much as {groups:.2f} groups of keys and values"
        fig.text(0.02, 0.88, title, size=14)
    fig.alt = (
        f"Latent {c.kv_lora_rank}, rotated key {c.qk_rope_head_dim}: {own:,.0f} bytes per token, {mine:.2f} GiB for "
        f"{tokens:,} tokens, {1 - groups / c.num_attention_heads:.2%} less than keys and values "
        f"of {width} for each of {c.num_attention_heads} heads."
    )
    return fig


def draw_score_parts(
    content: np.ndarray, rotated: np.ndarray, names: Sequence[str], tokens: Sequence[str], title: str
) -> Picture:
    """Draw, for some heads, the two parts of their scores and the attention that the sum gives.

    content, rotated: (heads, T, T), scaled scores of each query (row) and key; only keys up to the query count.
    """
    heads, T = content.shape[:2]
    seen = np.tril(np.ones((T, T), dtype=bool))
    columns = ("content part", "rotated part", "weights of the sum")
    with styled():
        fig = new_figure(height=0.75 + 2.55 * heads)
        for head in range(heads):
            both = np.where(seen, content[head] + rotated[head], -np.inf)
            weights = np.exp(both - both.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            # A score counts only against the others of its row.
            parts = [_centred(part, seen) for part in (content[head], rotated[head])]
            limit = max(np.abs(part[seen]).max() for part in parts)
            for column, values in enumerate([*parts, weights]):
                height = 2.55 / (0.75 + 2.55 * heads)
                ax = fig.add_axes((0.16 + 0.285 * column, 0.02 + (heads - 1 - head) * height, 0.26, height * 0.86))
                shown = np.ma.masked_array(values, ~seen)
                look = (
                    dict(cmap="cividis", norm=PowerNorm(0.5, 0, 1))
                    if column == 2
                    else dict(cmap="RdBu_r", vmin=-limit, vmax=limit)
                )
                ax.imshow(shown, aspect="auto", interpolation="nearest", **look)
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
                if head == 0:
                    ax.set_title(columns[column], size=12, loc="center", pad=6)
                if column == 0:
                    ax.text(-0.06, 0.5, names[head], transform=ax.transAxes, ha="right", va="center", size=12)
        fig.text(0.02, 1 - 0.3 / (0.75 + 2.55 * heads), title, size=14)
    shares = [share_of_rotated(content[head], rotated[head]) for head in range(heads)]
    fig.alt = f"{T} tokens, {tokens[0]!r} to {tokens[-1]!r}. " + "; ".join(
        f"{name}: the rotated part makes {share:.0%} of the variation of its scores, distance alone {by:.0%} of that"
        for name, share, by in zip(names, shares, map(share_of_distance, rotated), strict=True)
    ).replace("\n", " ")
    return fig


def _centred(scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return scores less the mean of their row, over what the row sees: a softmax does not know the difference."""
    mean = np.where(seen, scores, 0).sum(axis=1, keepdims=True) / seen.sum(axis=1, keepdims=True)
    return np.where(seen, scores - mean, 0)


def share_of_rotated(content: np.ndarray, rotated: np.ndarray) -> float:
    """Return the variance within rows of the rotated part over that of both parts, each by itself; (T, T) each."""
    seen = np.tril(np.ones(content.shape, dtype=bool))
    by_content, by_rotated = (np.square(_centred(part, seen)).sum() for part in (content, rotated))
    return float(by_rotated / (by_content + by_rotated))


def share_of_distance(part: np.ndarray) -> float:
    """Return how much of a part's variance within rows distance alone explains, by least squares; (T, T)."""
    T = len(part)
    rows, columns = np.tril_indices(T)
    seen = np.tril(np.ones((T, T), dtype=bool))
    # One unknown for each row, because a row may be shifted, and one for each distance.
    unknowns = np.hstack([np.eye(T)[rows], np.eye(T)[rows - columns]])
    left = part[rows, columns] - unknowns @ np.linalg.lstsq(unknowns, part[rows, columns], rcond=None)[0]
    return float(1 - np.square(left).sum() / np.square(_centred(part, seen)).sum())
