"""What a model costs, in five pictures: where its parameters are, and what they ask for."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from minids.book.plots.style import (
    INK,
    MUTED,
    PALE,
    PARTS,
    VERDICT_MARKS,
    VERDICTS,
    Picture,
    new_figure,
    readable_on,
    spread,
    styled,
)
from minids.cost.accounting import (
    ParameterCount,
    count_parameters,
    kv_cache_bytes,
    pre_training_hours_like_v3,
    training_flops_per_token,
)
from minids.cost.published import DOLLARS_PER_HOUR, REPORTS, Report
from minids.model.config import ModelConfig

SMALL_PARTS = {  # field of ParameterCount: what it is called, and its colour
    "attention": ("attention", PARTS["attention"]),
    "shared_experts": ("shared experts", PARTS["shared"]),
    "dense_ffn": ("dense layers", PARTS["dense"]),
    "embedding": ("embedding", PARTS["embedding"]),
    "head": ("head", PARTS["head"]),
    "router": ("router", PARTS["router"]),
    "norms": ("norms", PARTS["norm"]),
}
LENGTH = 4096  # of a training sequence


def draw_parameters(config: ModelConfig, dollars_per_hour: float | None = None) -> Picture:
    """Draw every parameter as area: the small parts in a column, the routed experts as one cell each.

    What one token uses is lit. With a price, a line below says what training such a model as V3 was trained
    would take.
    """
    count = count_parameters(config)
    with styled():
        fig = new_figure(height=5.4 if dollars_per_hour is None else 6.2)
        bottom = 0.03 if dollars_per_hour is None else 0.17
        ax = fig.add_axes((0.22, bottom, 0.76, 0.86 - bottom))
        ax.set(xlim=(0, 1), ylim=(0, 1))
        ax.axis("off")
        left = 1 - count.routed_experts / count.total
        _small_parts(ax, count, left)
        if count.routed_experts:
            _experts(ax, config, count, left)
        fig.text(0.02, 0.945, f"A token uses {short(count.active)} of {short(count.total)} parameters: "
                 f"{count.active / count.total:.1%}", size=14, color=INK)  # fmt: skip
        if dollars_per_hour is not None:
            hours = pre_training_hours_like_v3(config)
            _numbers(fig, {
                "cache per token": f"{kv_cache_bytes(config) / 1e3:,.1f} KB",
                "training, per token": f"{training_flops_per_token(config, LENGTH) / 1e9:,.0f} GFLOP",
                "pre-training like V3": f"{short(hours)} GPU-hours",
                f"at ${dollars_per_hour:.2f} an hour": f"${short(hours * dollars_per_hour)}",
            })  # fmt: skip
    parts = {_name(field): number for field, number in count.breakdown.items()}
    fig.alt = (
        f"{count.total:,} parameters, {count.active:,} used per token ({count.active / count.total:.1%}). "
        + ", ".join(f"{name} {number:,}" for name, number in parts.items())
    )
    if dollars_per_hour is not None:
        fig.alt += (
            f". Cache {kv_cache_bytes(config):,.0f} bytes per token. Pre-training like V3: {hours:,.0f} GPU-hours, "
            f"${hours * dollars_per_hour:,.0f}"
        )
    return fig


def _small_parts(ax, count: ParameterCount, width: float) -> None:
    """Draw all that is not a routed expert as a column, with its labels to the left."""
    sizes = {field: getattr(count, field) for field in SMALL_PARTS if getattr(count, field)}
    whole, y, middles = sum(sizes.values()), 0.0, {}
    for field, size in sizes.items():
        height = size / whole
        color = SMALL_PARTS[field][1]
        ax.add_patch(Rectangle((0, y), width, height, facecolor=color, edgecolor="white", linewidth=0.5))
        middles[field], y = y + height / 2, y + height
    named = {field: middle for field, middle in middles.items() if sizes[field] >= 0.002 * whole}
    for field, place in spread(named, gap=0.062, lowest=0.02).items():
        ax.annotate(
            f"{SMALL_PARTS[field][0]}\u2002{short(sizes[field])}", (0, middles[field]), (-0.03, place), ha="right",
            va="center", size=11, annotation_clip=False,
            arrowprops=dict(arrowstyle="-", color=MUTED, linewidth=0.7, shrinkA=1, shrinkB=0),
        )  # fmt: skip


def _experts(ax, config: ModelConfig, count: ParameterCount, left: float) -> None:
    """Draw a row for each mixture and a cell for each of its experts; those of one token are lit."""
    layers = sum(config.is_moe_layer(i) for i in range(config.num_hidden_layers))
    chosen = np.random.default_rng(0).random((layers, config.n_routed_experts)).argsort(axis=1)
    lit = chosen < config.num_experts_per_tok
    cells = np.where(lit[..., None], to_rgb(PARTS["routed"]), to_rgb(PALE))
    ax.imshow(cells, extent=(left + 0.004, 1, 0, 1), aspect="auto", interpolation="nearest")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    words = (
        f"{layers} × {config.n_routed_experts} routed experts, {short(count.routed_experts)}; "
        f"lit, a token’s {layers * config.num_experts_per_tok:,}: {short(count.active_routed_experts)}"
    )
    ax.annotate(words, (1, 1), (0, 6), textcoords="offset points", ha="right", size=11, annotation_clip=False)


def _numbers(fig: Picture, numbers: dict[str, str]) -> None:
    """Write a row of numbers along the foot, each over what it is."""
    for i, (what, number) in enumerate(numbers.items()):
        x = 0.02 + i * 0.245
        fig.text(x, 0.075, number, size=13, weight="bold")
        fig.text(x, 0.03, what, size=11, color=MUTED)


def draw_hours(report: Report) -> Picture:
    """Draw how the GPU-hours of a training run add up, each stage from where the one before ended.

    Raises ValueError for a report that does not give those of every stage.
    """
    if report.gpu_hours is None:
        raise ValueError(f"The report of {report.name} does not give the GPU-hours of every stage.")
    stages = {
        "pre-training": report.pre_training_hours,
        "longer context": report.extension_hours,
        "post-training": report.post_training_hours,
    }
    with styled():
        fig = new_figure(height=3.7)
        ax = fig.add_axes((0.17, 0.13, 0.58, 0.68))
        begun = 0.0
        for row, (stage, hours) in enumerate([*stages.items(), ("all", report.gpu_hours)]):
            start, color = (0, INK) if stage == "all" else (begun, PARTS["latent"])
            ax.barh(row, hours, left=start, color=color, height=0.62)
            if stage != "all":
                begun += hours
                ax.plot((begun, begun), (row - 0.31, row + 1.31), color=MUTED, linewidth=0.8)
            label = f"{hours / 1e3:,.0f}K hours  ${hours * DOLLARS_PER_HOUR / 1e6:,.3f}M"
            ax.annotate(label, (report.gpu_hours * 1.025, row), va="center", annotation_clip=False)
        ax.set(yticks=range(4), yticklabels=[*stages, "together"], xlim=(0, report.gpu_hours), xticks=[])
        ax.tick_params(axis="y", length=0, labelcolor=INK, labelsize=12)
        ax.invert_yaxis()
        ax.spines[:].set_visible(False)
        share = report.pre_training_hours / report.gpu_hours
        fig.text(0.02, 0.9, f"{share:.1%} of the GPU-hours are pre-training", size=14)
        fig.text(
            0.02, 0.03, f"${DOLLARS_PER_HOUR:g} for an hour of an H800, as the report assumes", size=11, color=MUTED
        )
    said = ", ".join(f"{stage} {hours:,.0f}" for stage, hours in stages.items())
    fig.alt = (
        f"GPU-hours: {said}; together {report.gpu_hours:,.0f}, at ${DOLLARS_PER_HOUR:.2f} "
        f"${report.gpu_hours * DOLLARS_PER_HOUR:,.0f}"
    )
    return fig


def draw_models(names: list[str]) -> Picture:
    """Draw models side by side: parameters, cache per token, FLOPs per trained token, and hours where published."""
    configs = {name: ModelConfig.preset(name) for name in names}
    counts = {name: count_parameters(config) for name, config in configs.items()}
    columns = {
        "parameters": [counts[name].total / 1e9 for name in names],
        "cache, KB\nper token": [kv_cache_bytes(configs[name]) / 1e3 for name in names],
        "GFLOP to\ntrain a token": [training_flops_per_token(configs[name], LENGTH) / 1e9 for name in names],
        "GPU-hours per\ntrillion tokens": [(REPORTS[name].hours_per_trillion or 0) / 1e3 for name in names],
    }
    with styled():
        fig = new_figure(height=4.3)
        for i, (title, values) in enumerate(columns.items()):
            ax = fig.add_axes((0.1 + i * 0.228, 0.06, 0.13, 0.65))
            ax.barh(names, values, color=PALE if i == 0 else MUTED, height=0.64)
            labels = [f"{value:,.0f}" if value else "not published" for value in values]
            if i == 0:
                ax.barh(names, [counts[name].active / 1e9 for name in names], color=PARTS["routed"], height=0.64)
                labels = [f"{short(counts[name].total)}" for name in names]
            if i == 3:
                labels = [f"{value:,.1f}K" if value else "not published" for value in values]
            for row, (value, label) in enumerate(zip(values, labels, strict=True)):
                ax.annotate(
                    label, (value, row), (4, 0), textcoords="offset points", va="center", annotation_clip=False,
                    size=11, color=INK if value else MUTED,
                )  # fmt: skip
            ax.set_yticks(range(len(names)), [REPORTS[name].name for name in names] if i == 0 else [])
            ax.set(xticks=[], xlim=(0, max(values) or 1))
            ax.tick_params(axis="y", length=0, labelcolor=INK, labelsize=12)
            ax.set_title(title, size=11.5, color=INK, pad=8)
            ax.invert_yaxis()
            ax.spines["bottom"].set_visible(False)
        v3, dense = (ModelConfig.preset(f"deepseek-{name}") for name in ("v3", "llm-67b"))
        size = count_parameters(v3).total / count_parameters(dense).total
        flops = training_flops_per_token(v3, LENGTH) / training_flops_per_token(dense, LENGTH)
        title = f"V3 has {size:.0f} times the parameters of LLM 67B and takes {flops:.0%} of its operations"
        fig.text(0.02, 0.92, title, size=14)
        fig.text(0.1, 0.01, "green: used by one token", size=11, color=PARTS["routed"])
    fig.alt = "; ".join(
        f"{REPORTS[name].name}: {counts[name].active / 1e9:.1f} of {counts[name].total / 1e9:.1f} billion parameters, "
        f"{kv_cache_bytes(configs[name]):,.0f} bytes of cache, "
        f"{training_flops_per_token(configs[name], LENGTH) / 1e9:.1f} GFLOP a token"
        + (
            f", {REPORTS[name].hours_per_trillion:,.0f} GPU-hours per trillion"
            if REPORTS[name].hours_per_trillion
            else ""
        )
        for name in names
    )
    return fig


CONVENTIONS = {
    "active_body": "body alone",
    "active": "body and head",
    "active_with_embedding": "body, head and embedding",
}


def printed(text: str) -> tuple[float, float]:
    """Return the numbers that round to what is printed, from and up to: 36.5 to 37.5 billion for "37B"."""
    number = text.removesuffix("B")
    half = 0.5 * 10.0 ** -len(number.partition(".")[2])
    return (float(number) - half) * 1e9, (float(number) + half) * 1e9


def draw_conventions(names: list[str]) -> Picture:
    """Draw three ways to count the active parameters beside what each report prints."""
    markers, said = ("o", "s", "D"), []
    with styled():
        fig = new_figure(height=4.2)
        ax = fig.add_axes((0.16, 0.24, 0.8, 0.58))
        for row, name in enumerate(names):
            count, report = count_parameters(ModelConfig.preset(name)), REPORTS[name]
            bounds = printed(report.active)
            middle = sum(bounds) / 2
            low, high = (bound / middle for bound in bounds)
            ax.barh(row, high - low, left=low, height=0.6, color=PALE)
            fits = []
            for (field, words), marker in zip(CONVENTIONS.items(), markers, strict=True):
                at = getattr(count, field) / middle
                inside = low <= at < high
                color = PARTS["routed"] if inside else MUTED
                ax.plot(at, row, marker, color=color, markersize=9, markerfacecolor=color if inside else "white")
                ax.annotate(
                    f"{getattr(count, field) / 1e9:.2f}", (at, row), (0, 9), textcoords="offset points", ha="center",
                    size=10, color=INK if inside else MUTED,
                )  # fmt: skip
                fits += [words] * inside
            said.append(f"{report.name} prints {report.active}: {' or '.join(fits) or 'none of the three'}")
        ax.set_yticks(range(len(names)), [f"{REPORTS[name].name}: {REPORTS[name].active}" for name in names])
        ax.tick_params(axis="y", length=0, labelcolor=INK, labelsize=12)
        ax.set(xlim=(0.84, 1.12), ylim=(len(names) - 0.5, -0.7))
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        ax.set_xlabel("our count ÷ what the report prints")
        ax.spines["left"].set_visible(False)
        fig.text(0.02, 0.92, "No one way to count “activated” fits all four models", size=14)
        for x, sign, words in zip((0.16, 0.31, 0.5), "●■◆", CONVENTIONS.values(), strict=True):
            fig.text(x, 0.03, f"{sign} {words}", size=11, color=MUTED)
        fig.text(0.76, 0.03, "▬", size=15, color="#C4C8CE")
        fig.text(0.79, 0.03, "rounds to it; billions", size=11, color=MUTED)
    fig.alt = "; ".join(said)
    return fig


def draw_claims(claims: list, articles: dict[str, str]) -> Picture:
    """Draw a square for each claim, row by article, coloured by verdict, and how many of each there are."""
    kinds = list(VERDICTS)
    with styled():
        fig = new_figure(height=3.6)
        ax = fig.add_axes((0.1, 0.1, 0.88, 0.72))
        for row, article in enumerate(articles):
            of_article = sorted((c.verdict for c in claims if c.article == article), key=kinds.index)
            for column, verdict in enumerate(of_article):
                ax.add_patch(Rectangle((column, row), 0.9, 0.8, color=VERDICTS[verdict]))
                ax.text(
                    column + 0.45, row + 0.42, VERDICT_MARKS[verdict], ha="center",
                    va="center_baseline", color=readable_on(VERDICTS[verdict]), size=13,
                )  # fmt: skip
            ax.text(-0.3, row + 0.4, article, ha="right", va="center", size=12)
        widest = max(sum(c.article == article for c in claims) for article in articles)
        ax.set(xlim=(0, max(widest, 16)), ylim=(len(articles), 0))
        ax.axis("off")
        total = {kind: sum(c.verdict == kind for c in claims) for kind in kinds}
        fig.text(0.02, 0.9, f"Of {len(claims)} claims {total['right']} are right, {total['imprecise']} imprecise, "
                 f"{total['wrong']} wrong", size=14)  # fmt: skip
    fig.alt = f"{len(claims)} claims: " + "; ".join(
        f"{article}: " + ", ".join(f"{sum(c.article == article and c.verdict == k for c in claims)} {k}" for k in kinds)
        for article in articles
    )
    return fig


def short(number: float) -> str:
    """Return a number with three digits and its unit: 671B, 36.6B, 4.24M."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= 0.9995 * unit:
            value = number / unit
            return f"{value:.{max(0, 2 - math.floor(math.log10(value * 1.0005)))}f}{letter}"
    return f"{number:.0f}"


def _name(field: str) -> str:
    return field.replace("_", " ")
