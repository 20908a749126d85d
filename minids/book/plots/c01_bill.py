"""What a model costs, in five pictures: parameters, training hours, models compared, conventions, and claims."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from minids.book.plots.helpers import label, name_ticks, spread
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
    styled,
)
from minids.cost.cache import kv_cache_bytes
from minids.cost.flops import pre_training_hours_like_v3, training_flops_per_token
from minids.cost.parameters import ParameterCount, count_parameters
from minids.cost.published import DOLLARS_PER_HOUR, REPORTS, Report
from minids.model.config import ModelConfig
from minids.units import short

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


@styled()
def draw_parameters(config: ModelConfig, dollars_per_hour: float | None = None) -> Picture:
    """Draw every parameter as area: the small parts in a column, the routed experts as one cell each.

    The parameters that one token uses are lit. With a price, a line below gives the cost of training it as V3 was.
    """
    count, priced = count_parameters(config), dollars_per_hour is not None
    fig = new_figure(height=6.2 if priced else 5.4)
    bottom = 0.17 if priced else 0.03
    ax = fig.add_axes((0.22, bottom, 0.76, 0.86 - bottom))
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")
    left = 1 - count.routed_experts / count.total
    _small_parts(ax, count, left)
    if count.routed_experts:
        _experts(ax, config, count, left)
    share = count.active / count.total
    fig.title(f"A token uses {short(count.active)} of {short(count.total)} parameters: {share:.1%}", y=0.945)
    parts = ", ".join(f"{field.replace('_', ' ')} {number:,}" for field, number in count.breakdown.items())
    fig.alt = f"{count.total:,} parameters, {count.active:,} used per token ({share:.1%}). {parts}"
    if priced:
        cache, hours = kv_cache_bytes(config), pre_training_hours_like_v3(config)
        dollars = hours * dollars_per_hour
        numbers = {
            "cache per token": f"{cache / 1e3:,.1f} KB",
            "training, per token": f"{training_flops_per_token(config, LENGTH) / 1e9:,.0f} GFLOP",
            "pre-training like V3": f"{short(hours)} GPU-hours",
            f"at ${dollars_per_hour:.2f} an hour": f"${short(dollars)}",
        }
        for i, (what, number) in enumerate(numbers.items()):
            fig.text(0.02 + i * 0.245, 0.075, number, size=13, weight="bold")
            fig.note(0.02 + i * 0.245, 0.03, what)
        fig.alt += (
            f". Cache {cache:,.0f} bytes per token. Pre-training like V3: {hours:,.0f} GPU-hours, ${dollars:,.0f}"
        )
    return fig


def _small_parts(ax: Axes, count: ParameterCount, width: float) -> None:
    """Draw all that is not a routed expert as a column, with its labels to the left."""
    sizes = {field: getattr(count, field) for field in SMALL_PARTS if getattr(count, field)}
    whole, y, middles = sum(sizes.values()), 0.0, {}
    for field, size in sizes.items():
        height, color = size / whole, SMALL_PARTS[field][1]
        ax.add_patch(Rectangle((0, y), width, height, facecolor=color, edgecolor="white", linewidth=0.5))
        middles[field], y = y + height / 2, y + height
    named = {field: middle for field, middle in middles.items() if sizes[field] >= 0.002 * whole}
    for field, place in spread(named, gap=0.062, lowest=0.02).items():
        ax.annotate(
            f"{SMALL_PARTS[field][0]}\u2002{short(sizes[field])}", (0, middles[field]), (-0.03, place), ha="right",
            va="center", size=11, annotation_clip=False,
            arrowprops=dict(arrowstyle="-", color=MUTED, linewidth=0.7, shrinkA=1, shrinkB=0),
        )  # fmt: skip


def _experts(ax: Axes, config: ModelConfig, count: ParameterCount, left: float) -> None:
    """Draw a row for each mixture and a cell for each of its experts; those of one token are lit."""
    layers = sum(config.is_moe_layer(i) for i in range(config.num_hidden_layers))
    chosen = np.random.default_rng(0).random((layers, config.n_routed_experts)).argsort(axis=1)
    lit = chosen < config.num_experts_per_tok
    cells = np.where(lit[..., None], to_rgb(PARTS["routed"]), to_rgb(PALE))
    ax.imshow(cells, extent=(left + 0.004, 1, 0, 1), aspect="auto", interpolation="nearest")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    words = (
        f"{layers} × {config.n_routed_experts} routed experts, {short(count.routed_experts)}; "
        f"green: the {layers * config.num_experts_per_tok:,} of one token, {short(count.active_routed_experts)}"
    )
    label(ax, words, (1, 1), (0, 6), ha="right")


@styled()
def draw_hours(report: Report) -> Picture:
    """Draw how the GPU-hours of a training run add up, each stage starting at the end of the one before.

    Raises ValueError for a report that does not give those of every stage.
    """
    if report.gpu_hours is None:
        raise ValueError(f"The report of {report.name} does not give the GPU-hours of every stage.")
    stages = {
        "pre-training": report.pre_training_hours,
        "longer context": report.extension_hours,
        "post-training": report.post_training_hours,
    }
    fig = new_figure(height=3.7)
    ax = fig.add_axes((0.17, 0.13, 0.58, 0.68))
    begun = 0.0
    for row, (stage, hours) in enumerate([*stages.items(), ("all", report.gpu_hours)]):
        start, color = (0, INK) if stage == "all" else (begun, MUTED)
        ax.barh(row, hours, left=start, color=color, height=0.62)
        if stage != "all":
            begun += hours
            ax.plot((begun, begun), (row - 0.31, row + 1.31), color=MUTED, linewidth=0.8)
        words = f"{hours / 1e3:,.0f}K hours  ${hours * DOLLARS_PER_HOUR / 1e6:,.3f}M"
        label(ax, words, (report.gpu_hours * 1.025, row), (0, 0), ha="left", va="center", size=12)
    name_ticks(ax, "y", [*stages, "together"])
    ax.set(xlim=(0, report.gpu_hours), xticks=[])
    ax.invert_yaxis()
    ax.spines[:].set_visible(False)
    fig.title(f"{report.pre_training_hours / report.gpu_hours:.1%} of the GPU-hours are pre-training", y=0.9)
    fig.note(0.02, 0.03, f"${DOLLARS_PER_HOUR:g} for an hour of an H800, as the report assumes")
    said = ", ".join(f"{stage} {hours:,.0f}" for stage, hours in stages.items())
    fig.alt = (
        f"GPU-hours: {said}; together {report.gpu_hours:,.0f}, at ${DOLLARS_PER_HOUR:.2f} "
        f"${report.gpu_hours * DOLLARS_PER_HOUR:,.0f}"
    )
    return fig


@styled()
def draw_models(names: list[str]) -> Picture:
    """Draw models side by side: parameters, cache per token, FLOPs per trained token, and hours where published."""
    configs = [ModelConfig.preset(name) for name in names]
    reports = [REPORTS[name] for name in names]
    counts = [count_parameters(config) for config in configs]
    total, active = ([getattr(count, field) / 1e9 for count in counts] for field in ("total", "active"))
    caches = [kv_cache_bytes(config) / 1e3 for config in configs]
    flops = [training_flops_per_token(config, LENGTH) / 1e9 for config in configs]
    hours = [(report.hours_per_trillion or 0) / 1e3 for report in reports]
    columns = (
        ("parameters", total, [short(count.total) for count in counts]),
        ("cache, KB\nper token", caches, [f"{value:,.0f}" for value in caches]),
        ("GFLOP to\ntrain a token", flops, [f"{value:,.0f}" for value in flops]),
        ("GPU-hours per\ntrillion tokens", hours, [f"{value:,.1f}K" if value else "not published" for value in hours]),
    )
    fig = new_figure(height=4.3)
    for i, (title, values, labels) in enumerate(columns):
        ax = fig.add_axes((0.1 + i * 0.228, 0.06, 0.13, 0.65))
        ax.barh(names, values, color=PALE if i == 0 else MUTED, height=0.64)
        if i == 0:
            ax.barh(names, active, color=INK, height=0.64)
        for row, (value, text) in enumerate(zip(values, labels, strict=True)):
            label(ax, text, (value, row), (4, 0), color=INK if value else MUTED)
        name_ticks(ax, "y", [report.name if i == 0 else "" for report in reports])
        ax.set(xticks=[], xlim=(0, max(values) or 1))
        ax.set_title(title, size=11.5, color=INK, pad=8)
        ax.invert_yaxis()
        ax.spines["bottom"].set_visible(False)
    v3, dense = (ModelConfig.preset(f"deepseek-{name}") for name in ("v3", "llm-67b"))
    larger = count_parameters(v3).total / count_parameters(dense).total
    work = training_flops_per_token(v3, LENGTH) / training_flops_per_token(dense, LENGTH)
    fig.title(f"V3 has {larger:.0f} times the parameters of LLM 67B and takes {work:.0%} of its operations")
    fig.note(0.1, 0.01, "black: used by one token", color=INK)
    fig.alt = "; ".join(
        f"{report.name}: {active[i]:.1f} of {total[i]:.1f} billion parameters, "
        f"{kv_cache_bytes(configs[i]):,.0f} bytes of cache, {flops[i]:.1f} GFLOP a token"
        + (f", {report.hours_per_trillion:,.0f} GPU-hours per trillion" if report.hours_per_trillion else "")
        for i, report in enumerate(reports)
    )
    return fig


CONVENTIONS = {
    "active_body": "body alone",
    "active": "body and head",
    "active_with_embedding": "body, head and embedding",
}


def printed(text: str) -> tuple[float, float]:
    """Return the bounds of the numbers that round to the printed one: 36.5 and 37.5 billion for "37B"."""
    number = text.removesuffix("B")
    half = 0.5 * 10.0 ** -len(number.partition(".")[2])
    return (float(number) - half) * 1e9, (float(number) + half) * 1e9


@styled()
def draw_conventions(names: list[str]) -> Picture:
    """Draw three ways to count the active parameters beside what each report prints."""
    said = []
    fig = new_figure(height=4.2)
    ax = fig.add_axes((0.16, 0.24, 0.8, 0.58))
    for row, name in enumerate(names):
        count, report = count_parameters(ModelConfig.preset(name)), REPORTS[name]
        bounds = printed(report.active)
        middle = sum(bounds) / 2
        low, high = (bound / middle for bound in bounds)
        ax.barh(row, high - low, left=low, height=0.6, color=PALE)
        fits = []
        for (field, words), marker in zip(CONVENTIONS.items(), "osD", strict=True):
            at = getattr(count, field) / middle
            inside = low <= at < high
            color = INK if inside else MUTED
            ax.plot(at, row, marker, color=color, markersize=9, markerfacecolor=color if inside else "white")
            number = f"{getattr(count, field) / 1e9:.2f}B"
            label(ax, number, (at, row), (0, 9), size=10, color=INK if inside else MUTED)
            fits += [words] * inside
        said.append(f"{report.name} prints {report.active}: {' or '.join(fits) or 'none of the three'}")
    name_ticks(ax, "y", [f"{REPORTS[name].name}: {REPORTS[name].active}" for name in names])
    ax.set(xlim=(0.84, 1.12), ylim=(len(names) - 0.5, -0.7), xlabel="our count ÷ what the report prints")
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    ax.spines["left"].set_visible(False)
    fig.title("No single way to count “activated” fits all four models")
    for x, sign, words in zip((0.16, 0.3, 0.48), "●■◆", CONVENTIONS.values(), strict=True):
        fig.note(x, 0.03, f"{sign} {words}")
    fig.note(0.775, 0.03, "▬", size=15, color="#C4C8CE")
    fig.note(0.805, 0.03, "equal if rounded")
    fig.alt = "; ".join(said)
    return fig


@styled()
def draw_claims(claims: list, articles: dict[str, object]) -> Picture:
    """Draw a square for each claim, row by article: filled where code computes the number, outlined where it is quoted.

    Colour and sign are the verdict. The title counts the computed claims, the heading over the others counts those.
    """
    found = {
        kind: {article: [c.verdict for c in claims if (c.article, c.kind) == (article, kind)] for article in articles}
        for kind in ("computed", "quoted")
    }
    starts = {"computed": 0, "quoted": 1.6 + max(map(len, found["computed"].values()))}
    fig = new_figure(height=4.3)
    ax = fig.add_axes((0.1, 0.1, 0.88, 0.62))
    for kind, given in found.items():
        for row, verdicts in enumerate(given.values()):
            for column, verdict in enumerate(sorted(verdicts, key=list(VERDICTS).index)):
                _claim(ax, starts[kind] + column, row, verdict, filled=kind == "computed")
    for row, article in enumerate(articles):
        ax.text(-0.3, row + 0.4, article, ha="right", va="center", size=12)
    ax.set(xlim=(0, 16.5), ylim=(len(articles), 0))
    ax.axis("off")
    whole = {kind: [verdict for verdicts in given.values() for verdict in verdicts] for kind, given in found.items()}
    right, imprecise, wrong = (whole["computed"].count(verdict) for verdict in VERDICTS)
    first, number = f"Of {len(whole['computed'])} claims that can be computed,", len(whole["quoted"])
    fig.title(f"{first} {right} are right, {imprecise} imprecise, {wrong} wrong")
    headings = {
        "computed": "computed from configurations\nand printed GPU-hours",
        "quoted": f"{number} about prices and scores, only\ncompared with a printed list",
    }
    for kind, words in headings.items():
        ax.text(starts[kind], -0.25, words, size=11, color=MUTED, va="bottom", linespacing=1.4)
    fig.note(0.1, 0.03, "      ".join(f"{sign} {verdict}" for verdict, sign in VERDICT_MARKS.items()))
    fig.alt = "; ".join(f"{kind}: {_counts(whole[kind])}" for kind in whole) + ". By article, computed and quoted: "
    fig.alt += "; ".join(f"{a}: {_counts(found['computed'][a])} and {_counts(found['quoted'][a])}" for a in articles)
    return fig


def _counts(verdicts: list[str]) -> str:
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in VERDICTS)


def _claim(ax: Axes, x: float, y: float, verdict: str, filled: bool) -> None:
    color = VERDICTS[verdict]
    face = color if filled else "white"
    ax.add_patch(Rectangle((x, y), 0.88, 0.8, facecolor=face, edgecolor=color, linewidth=2, clip_on=False))
    ink = readable_on(color) if filled else INK
    ax.text(x + 0.44, y + 0.42, VERDICT_MARKS[verdict], ha="center", va="center_baseline", color=ink, size=13)
