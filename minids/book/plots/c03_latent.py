"""The pictures of caches with and without latents, and of the two parts of a score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm

from minids.book.plots.helpers import label, log_scale, name_ticks
from minids.book.plots.style import INK, PALE, PAPER, PARTS, Picture, new_figure, styled
from minids.book.probes.attention import centred, share_of_distance, share_of_rotated
from minids.cost.cache import attention_kind, kv_cache_bytes_by_kind
from minids.cost.published import REPORTS
from minids.model.config import ModelConfig
from minids.units import GIB, in_gib, in_k

KIND_COLORS = {"MHA": INK, "GQA": PARTS["shared"], "MQA": PARTS["head"], "MLA": PARTS["latent"]}


@styled()
def draw_cache_kinds(names: Sequence[str], tokens: int = 2**17) -> Picture:
    """Draw, for each model's shape, the cache of a long text with each kind of attention; its own kind is filled."""
    said, ratios = [], {}
    inches = 1.3 + 0.52 * len(names)
    fig = new_figure(height=inches)
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
        label(ax, f"{sizes[own]:,.1f}", (sizes[own], row), (0, 9))
        if own == "MLA":
            ratios[REPORTS[name].name] = sizes["MHA"] / sizes["MLA"]
        said.append(f"{REPORTS[name].name} ({own}): " + ", ".join(f"{k} {v:,.1f}" for k, v in sizes.items()))
    log_scale(ax, "x", in_gib, [1, 10, 100, 1000])
    ax.set(xlim=(1, 1000), ylim=(len(names) - 0.4, -0.75))
    name_ticks(ax, "y", [REPORTS[name].name for name in names])
    ax.spines["left"].set_visible(False)
    for x, (kind, color) in zip((0.12, 0.23, 0.43, 0.6), KIND_COLORS.items(), strict=True):
        fig.note(x, 0.855, "●", size=12, color=color)
        fig.note(x + 0.022, 0.857, {"GQA": "GQA, 8 groups", "MLA": "MLA;  filled: as released"}.get(kind, kind))
    title = f"The cache of {in_k(tokens)} tokens, with each kind of attention"
    if ratios:
        most = max(ratios, key=ratios.get)
        title = f"At {in_k(tokens)} tokens {most} caches {ratios[most]:.0f} times less than with MHA"
    fig.title(title, y=1 - 0.3 / inches)
    fig.alt = f"Cache of {tokens:,} tokens in GiB. " + "; ".join(said)
    return fig


@styled()
def draw_score_parts(
    content: np.ndarray, rotated: np.ndarray, names: Sequence[str], tokens: Sequence[str], title: str
) -> Picture:
    """Draw, for some heads, the two parts of their scores and the attention that the sum gives.

    content, rotated: (heads, T, T), scaled scores of each query (row) and key; only keys up to the query count.
    """
    heads, T = content.shape[:2]
    seen = np.tril(np.ones((T, T), dtype=bool))
    inches = 0.75 + 2.55 * heads
    fig = new_figure(height=inches)
    for head in range(heads):
        both = np.where(seen, content[head] + rotated[head], -np.inf)
        weights = np.exp(both - both.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        parts = [centred(content[head]), centred(rotated[head])]  # only differences within a row matter
        limit = max(np.abs(part[seen]).max() for part in parts)
        signed = dict(cmap="RdBu_r", vmin=-limit, vmax=limit)
        columns = {
            "content part": (parts[0], signed),
            "rotated part": (parts[1], signed),
            "weights of the sum": (weights, dict(cmap="cividis", norm=PowerNorm(0.5, 0, 1))),
        }
        for column, (name, (values, look)) in enumerate(columns.items()):
            height = 2.55 / inches
            ax = fig.add_axes((0.16 + 0.285 * column, 0.02 + (heads - 1 - head) * height, 0.26, height * 0.86))
            ax.imshow(np.ma.masked_array(values, ~seen), aspect="auto", interpolation="nearest", **look)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if head == 0:
                ax.set_title(name, size=12, loc="center", pad=6)
            if column == 0:
                ax.text(-0.06, 0.5, names[head], transform=ax.transAxes, ha="right", va="center", size=12)
    fig.title(title, y=1 - 0.3 / inches)
    fig.alt = f"{T} tokens, {tokens[0]!r} to {tokens[-1]!r}. " + "; ".join(
        f"{name}: the rotated part makes {share_of_rotated(content[head], rotated[head]):.0%} of the variation of its "
        f"scores, and distance alone explains {share_of_distance(rotated[head]):.0%} of that"
        for head, name in enumerate(names)
    ).replace("\n", " ")
    return fig
