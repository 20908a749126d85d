"""What balancing costs: recorded runs with a loss and with a bias, balance against held-out loss (chapter 5)."""

from __future__ import annotations

import math
import statistics

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from minids.book.plots.c05_arms import (
    LOOKS,
    NAMES,
    SYMBOLS,
    VIOLATIONS,
    against,
    arms_of,
    batch_violation,
    bits,
    draw_range,
    family,
    long_name,
    setting,
    short_name,
    strength,
    told,
    verdict,
    violation,
)
from minids.book.plots.helpers import DASHED, label, label_ends, log_scale, name_ticks
from minids.book.plots.style import INK, MUTED, PALE, Picture, new_figure, styled
from minids.book.recorded import Measured, runs_of
from minids.cost.published import LOSS_FREE


@styled()
def draw_tradeoff(result: dict, bias: str = "bias 0.01") -> Picture:
    """Draw held-out bits per byte against held-out MaxVio: a point for every arm but those with limited nodes."""
    arms = [arm for arm in result["arms"] if family(arm) != "nodes"]
    x, y = ({arm: of(result, arm) for arm in arms} for of in (violation, bits))
    fig = new_figure(height=5.4)
    ax = fig.add_axes((0.1, 0.13, 0.87, 0.68))
    log_scale(ax, "x", "{:g}".format, VIOLATIONS)
    low, high = (math.log10(edge(value for of in x.values() for value in of.values)) for edge in (min, max))
    bottom, top = (edge(value for of in y.values() for value in of.values) for edge in (min, max))
    ax.set(xlim=(10 ** (1.1 * low - 0.1 * high), 10 ** (1.12 * high - 0.12 * low)),
           ylim=(bottom - 0.2 * (top - bottom), top + 0.1 * (top - bottom)))  # fmt: skip
    none = y["none"]
    ax.axhspan(none.low, none.high, color=PALE, alpha=0.6, zorder=0, linewidth=0)
    for name in SYMBOLS:
        line = arms_of(result, name)
        means = [x[arm].mean for arm in line], [y[arm].mean for arm in line]
        ax.plot(*means, color=LOOKS[name][0], linewidth=1, alpha=0.5, zorder=1)
    for arm in arms:
        draw_range(ax, x[arm], y[arm], arm)
    _label_points(ax, {arm: (x[arm], y[arm]) for arm in arms})
    ax.set(xlabel="MaxVio of all held-out tokens, mean of the layers (logarithmic)", ylabel="held-out bits per byte")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.3f}")
    loss, even = (min(arms_of(result, name), key=lambda arm: x[arm].mean) for name in ("loss", "bias"))
    also = f"; at {setting(even)}: MaxVio {x[even].mean:.2f}" if even != bias else ""
    fig.title(f"Bias, {setting(bias)}: MaxVio {x[bias].mean:.2f}, {verdict(y[bias], none)}{also}", y=0.945)
    compared = against(y[loss], y[bias], f"the bias with {setting(bias)}")
    fig.text(0.02, 0.9, f"The most even {short_name(loss)}: MaxVio {x[loss].mean:.2f}, {compared}", size=12)
    at = 0.11
    for name, symbol in SYMBOLS.items():
        (color, marker), words = LOOKS[name], NAMES[name][1]
        mark = Line2D([at], [0.855], marker=marker, color=color, markersize=8, linewidth=0, transform=fig.transFigure)
        fig.add_artist(mark)
        fig.text(at + 0.015, 0.845, f"{words} ({symbol})", size=11, color=color)
        at += 0.06 + 0.0105 * len(words)
    fig.note(at, 0.845, f"a cross spans {len(none.values)} runs; grey: no balancing")
    ax.annotate("even and good", (0.005, 0.012), (0.07, 0.07), xycoords="axes fraction", size=11, color=MUTED,
                va="center", arrowprops={"arrowstyle": "-|>", "color": MUTED})  # fmt: skip
    fig.alt = "Held-out MaxVio and bits per byte, means of the runs with lowest and highest. " + "; ".join(
        f"{long_name(arm)}: {x[arm]}, {y[arm]}" for arm in arms
    )
    return fig


def _label_points(ax: Axes, points: dict[str, tuple[Measured, Measured]], size: float = 11) -> None:
    """Label each arm's point at the first place around it that is free of points, ranges and other texts."""

    def place(x: float, y: float) -> tuple[float, float]:
        return tuple(72 / ax.figure.dpi * coordinate for coordinate in ax.transData.transform((x, y)))

    taken, frame = [], (*place(ax.get_xlim()[0], ax.get_ylim()[0]), *place(ax.get_xlim()[1], ax.get_ylim()[1]))
    for across, up in points.values():
        (x, y), (left, low), (right, high) = (
            place(getattr(across, edge), getattr(up, edge)) for edge in ("mean", "low", "high")
        )
        taken += [(x - 5, y - 5, x + 5, y + 5), (left, y - 1, right, y + 1), (x - 1, low, x + 1, high)]
    for arm, (across, up) in points.items():
        text = strength(arm) or short_name(arm)
        x, y = place(across.mean, up.mean)
        width, height = 0.62 * size * len(text), 1.25 * size
        best, least = (0.0, 0.0, 0.0), math.inf
        for distance in range(8, 80, 4):
            for angle in (45, 315, 135, 225, 0, 90, 270, 180):
                side, rise = math.cos(math.radians(angle)), math.sin(math.radians(angle))
                # The nearest edge of the text is `distance` away.
                middle = x + side * (distance + width / 2), y + rise * (distance + height / 2)
                box = (middle[0] - width / 2, middle[1] - height / 2, middle[0] + width / 2, middle[1] + height / 2)
                inside = frame[0] < box[0] and frame[1] < box[1] and box[2] < frame[2] and box[3] < frame[3]
                cost = sum(_overlap(box, other) for other in taken) + 0.1 * distance + 1e4 * (not inside)
                if cost < least:
                    best, least = (*middle, distance), cost
        middle, distance = best[:2], best[2]
        taken.append((middle[0] - width / 2, middle[1] - height / 2, middle[0] + width / 2, middle[1] + height / 2))
        color = LOOKS[family(arm)][0]
        line = {"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
        ax.annotate(
            text, (across.mean, up.mean), (middle[0] - x, middle[1] - y), textcoords="offset points", ha="center",
            va="center", size=size, color=INK if arm == "none" else color, arrowprops=line if distance > 12 else None,
        )  # fmt: skip


def _overlap(one: tuple, other: tuple) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, width) * max(0, height)


@styled()
def draw_headline(
    result: dict, published: dict = LOSS_FREE, loss: str = "loss 0.01", bias: str = "bias 0.01"
) -> Picture:
    """Draw what the bias changes against a loss: MaxVio, and the loss of language in percent; published and here.

    Perplexities are compared by their logarithms. Runs here are compared with the one of the same seeds. The scales are
    those of all arms of the loss's family.
    """
    theirs = {  # size: MaxVio with the loss and with the bias, and the change of the loss of language
        size: (n["loss"]["MaxVio"], n["bias"]["MaxVio"], _percent(n["loss"]["perplexity"], n["bias"]["perplexity"]))
        for size, n in published.items()
    }
    ours = {arm: violation(result, arm) for arm in (*arms_of(result, family(loss)), bias)}
    changes = {arm: _changes(result, arm, bias) for arm in arms_of(result, family(loss))}
    fig = new_figure(height=4.4)
    left, right = fig.add_axes((0.1, 0.15, 0.3, 0.6)), fig.add_axes((0.66, 0.15, 0.31, 0.6))
    heights = [edge for value in ours.values() for edge in (value.low, value.high)]
    heights += [height for values in theirs.values() for height in values[:2]]
    log_scale(left, "y", "{:g}".format, VIOLATIONS)
    left.set(xlim=(-0.15, 1.1), ylim=(0.8 * min(heights), 1.25 * max(heights)))
    _pairs(left, {size: values[:2] for size, values in theirs.items()}, {arm: ours[arm] for arm in (loss, bias)})
    widest = max(
        abs(change) for some in (*changes.values(), [values[2] for values in theirs.values()]) for change in some
    )
    right.set(xlim=(-1.3 * widest, 1.3 * widest), ylim=(len(theirs) + 0.6, -0.6))
    _shifts(right, {size: values[2] for size, values in theirs.items()}, changes[loss])
    fig.note(0.02, 0.81, "MaxVio of all held-out tokens (logarithmic)")
    fig.note(0.6, 0.81, "held-out loss of language, changed by the bias", size=10)
    first, said = next(iter(theirs.values())), "bits per byte not separated"
    if bits(result, loss).apart(bits(result, bias)):
        said = against(bits(result, bias), bits(result, loss), "the loss")
    here = f"{ours[loss].mean:.2f} → {ours[bias].mean:.2f} here"
    fig.title(f"MaxVio {first[0]:g} → {first[1]:g} published, {here}; {said}", y=0.91)
    fig.alt = "; ".join(
        f"{size}, published: MaxVio {values[0]:g} with the loss, {values[1]:g} with the bias, held-out loss "
        f"{values[2]:+.2f}%" for size, values in theirs.items()
    ) + (
        f"; here: MaxVio {ours[loss]} with {long_name(loss)}, {ours[bias]} with {long_name(bias)}, bits per byte "
        f"{bits(result, loss)} and {bits(result, bias)}; with the same seeds {statistics.mean(changes[loss]):+.2f}% "
        f"({min(changes[loss]):+.2f} to {max(changes[loss]):+.2f})."
    )  # fmt: skip
    return fig


def _pairs(ax: Axes, theirs: dict[str, tuple[float, float]], ours: dict[str, Measured]) -> None:
    """Draw MaxVio with the loss and with the bias, as a line for each size."""
    (loss, before), (bias, after) = ours.items()
    here = f"here: {before.mean:.2f} → {after.mean:.2f}\n({setting(loss)}, {setting(bias)})"
    ends = {here: (after.mean, INK)}
    for size, values in theirs.items():
        ax.plot([0, 1], values, "o-", color=MUTED, linewidth=1.3, markersize=6)
        ends[f"{size}: {values[0]:g} → {values[1]:g}"] = (values[1], MUTED)
    ax.plot([0, 1], [before.mean, after.mean], "-", color=INK, zorder=1)
    for x, (arm, value) in enumerate(ours.items()):
        draw_range(ax, x, value, arm)
    name_ticks(ax, "x", ["loss", "bias"])
    bottom, top = (math.log10(edge) for edge in ax.get_ylim())
    label_ends(ax, ends, gap=0.13 * (top - bottom), lowest=bottom + 0.04 * (top - bottom), shift=4, size=11)


def _shifts(ax: Axes, theirs: dict[str, float], ours: list[float]) -> None:
    """Draw by how many percent the loss of language changes: a row for each size, and one with our pairs of runs."""
    rows = {size: [change] for size, change in theirs.items()} | {"here": ours}
    for row, (size, changes) in enumerate(rows.items()):
        color, mean = INK if size == "here" else MUTED, statistics.mean(changes)
        ax.plot(changes, [row] * len(changes), "o-", color=color, markersize=5, linewidth=1.2)
        if size == "here":
            ax.plot([mean, mean], [row - 0.16, row + 0.16], color=INK, linewidth=3)
        label(ax, f"{mean:+.2f}%".replace("-", "−"), (mean, row - 0.16), (0, 7), color=color)
    ax.axvline(0, color=MUTED, linewidth=1, zorder=0)
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:+g}%".replace("-", "−") if value else "0")
    name_ticks(ax, "y", list(rows))


def _percent(old: float, new: float) -> float:
    """Return the change of the loss in percent, from perplexities."""
    return 100 * (math.log(new) / math.log(old) - 1)


def _changes(result: dict, one: str, other: str) -> list[float]:
    """Return by how many percent the bits per byte differ between two arms, for each pair of seeds."""
    old, new = (
        {(run["weights"], run["data"]): run["bits_per_byte"]["prose_and_code"] for run in runs_of(result, arm)}
        for arm in (one, other)
    )
    return [100 * (new[seeds] / old[seeds] - 1) for seeds in old]


@styled()
def draw_speeds(result: dict) -> Picture:
    """Draw held-out MaxVio and bits per byte against the speed γ of the bias and the weight α of the losses."""
    columns = {"speed γ of the bias": ("bias",), "weight α of the loss": ("loss", "batch loss")}
    speeds, weights = ([arm for name in names for arm in arms_of(result, name)] for names in columns.values())
    arms = ["none", *speeds, *weights]
    rows = {
        "MaxVio": {arm: violation(result, arm) for arm in arms},
        "bits per byte": {a: bits(result, a) for a in arms},
    }
    fig = new_figure(height=5.4)
    for j, (words, names) in enumerate(columns.items()):
        for i, (measure, found) in enumerate(rows.items()):
            ax = fig.add_axes((0.1 + 0.42 * j, 0.485 - 0.36 * i, 0.35, 0.3))
            _sweep(ax, {name: {arm: found[arm] for arm in arms_of(result, name)} for name in names}, found["none"])
            _height(ax, [edge for value in found.values() for edge in (value.low, value.high)], log=measure == "MaxVio")
            if not i:
                for name in names:
                    line = {float(strength(arm)): batch_violation(result, arm).mean for arm in arms_of(result, name)}
                    ax.plot(*zip(*line.items(), strict=True), color=LOOKS[name][0], linewidth=1.2, linestyle=DASHED)
            ax.tick_params(labelbottom=bool(i))
            ax.set(xlabel=words if i else "", ylabel="" if j else measure)
            if i and j:
                low, high = ax.get_ylim()
                ends = {NAMES[name][1]: (found[arms_of(result, name)[-1]].mean, LOOKS[name][0]) for name in names}
                label_ends(ax, ends, gap=0.13 * (high - low), lowest=low + 0.06 * (high - low), shift=2, size=11)
    best, second, *_ = sorted(speeds, key=lambda arm: rows["MaxVio"][arm].mean)
    even, none = [rows["MaxVio"][arm] for arm in (best, second)], rows["bits per byte"]["none"]
    worse = [arm for arm in speeds + weights if none.below(rows["bits per byte"][arm])]
    said = f"{len(worse) or 'none'} of {len(arms) - 1} settings {'cost' if len(worse) > 1 else 'costs'} bits per byte"
    finding = f"{setting(best)} balances best (MaxVio {even[0].mean:.2f})"
    if not even[0].below(even[1]):
        finding = f"MaxVio {even[0].mean:.2f} at {setting(best)}, {even[1].mean:.2f} at {strength(second)}"
    fig.title(f"{finding}; {said}", y=0.93)
    fig.note(0.1, 0.855, f"held-out; point: mean of {len(none.values)} runs, line: their range, grey: no balancing, "
             "dashed: of a batch")  # fmt: skip
    fig.alt = "Held-out MaxVio and bits per byte. " + "; ".join(
        f"{long_name(arm)}: {', '.join(str(found[arm]) for found in rows.values())}" for arm in arms
    )
    return fig


def _sweep(ax: Axes, lines: dict[str, dict[str, Measured]], none: Measured) -> None:
    """Draw a line for each family over the numbers of its arms, and the range without balancing."""
    ax.axhspan(none.low, none.high, color=PALE, zorder=0, linewidth=0)
    places = {"loss": 0.93, "batch loss": 1.07, "bias": 1.0}  # side by side where the numbers are equal
    for name, found in lines.items():
        at = {arm: places[name] * float(strength(arm)) for arm in found}
        ax.plot(list(at.values()), [value.mean for value in found.values()], color=LOOKS[name][0], linewidth=1.3)
        for arm, value in found.items():
            draw_range(ax, at[arm], value, arm)
    numbers = sorted({float(strength(arm)) for found in lines.values() for arm in found})
    log_scale(ax, "x", "{:g}".format, numbers)
    ax.set_xlim(0.6 * numbers[0], 1.7 * numbers[-1])


def _height(ax: Axes, heights: list[float], log: bool) -> None:
    if log:
        log_scale(ax, "y", "{:g}".format, VIOLATIONS)
        ax.set_ylim(0.8 * min(heights), 1.25 * max(heights))
        return
    room = 0.08 * (max(heights) - min(heights))
    ax.set_ylim(min(heights) - room, max(heights) + room)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.3f}")


@styled()
def draw_scopes(result: dict, bias: str = "bias 0.01") -> Picture:
    """Draw balancing within a sequence beside balancing within a batch: bits per byte, MaxVio, and what an expert
    tells about the domain of its tokens.
    """
    weights = [strength(arm) for arm in arms_of(result, "batch loss")]
    groups = [["none"], *[[f"loss {a}", f"batch loss {a}"] for a in weights], [bias]]
    fig = new_figure(height=5.2)
    rows, y = {}, 0.0
    for group in groups:
        for arm in group:
            rows[arm] = y
            y += 1
        y += 0.5
    columns = {
        "held-out bits per byte": {arm: bits(result, arm) for arm in rows},
        "MaxVio, all held-out tokens": {arm: violation(result, arm) for arm in rows},
        "bits an expert tells": {arm: told(result, arm)[0] for arm in rows},
    }
    for j, (words, found) in enumerate(columns.items()):
        ax = fig.add_axes((0.27 + 0.247 * j, 0.12, 0.215, 0.66))
        for arm, row in rows.items():
            color, marker = LOOKS[family(arm)]
            ax.plot([found[arm].low, found[arm].high], [row, row], color=color, linewidth=1.4)
            ax.plot([found[arm].mean], [row], marker, color=color, markersize=8, markeredgecolor="white")
            if j == 2:
                ax.plot([told(result, arm)[1].mean], [row], "|", color=INK, markersize=15, zorder=4)
        ax.set_ylim(y - 1, -0.5)
        ax.set_title(words, size=11, color=MUTED, pad=8)
        ax.spines["left"].set_visible(False)
        ax.grid(axis="y", color=PALE, linewidth=0.8)
        ax.set_axisbelow(True)
        names = [short_name(arm) for arm in rows] if not j else [""] * len(rows)
        name_ticks(ax, "y", names, list(rows.values()))
        if j == 1:
            log_scale(ax, "x", "{:g}".format, VIOLATIONS)
        else:
            ax.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        ax.margins(x=0.08)
    strong = weights[-1]
    scores, _, known = columns.values()
    sequence, batch = f"loss {strong}", f"batch loss {strong}"
    tells = [f"{known[arm].mean:.3f}" for arm in (sequence, batch, bias)]
    finding = f"{tells[0]} (sequence loss), {tells[1]} (batch loss); bias: {tells[2]}"
    fig.title(f"Bits about the domain, α = {strong}: {finding}", y=0.935)
    fig.text(0.02, 0.88, f"Bits per byte, α = {strong}: {_compared(scores[batch], scores[sequence])}", size=12)
    fig.note(0.764, 0.02, "tick: with shuffled labels", size=10)
    fig.alt = "Held-out bits per byte, MaxVio, and bits that an expert tells about the domain. " + "; ".join(
        f"{long_name(arm)}: {', '.join(str(found[arm]) for found in columns.values())}" for arm in rows
    )
    return fig


def _compared(batch: Measured, sequence: Measured) -> str:
    if not batch.apart(sequence):
        return f"the two losses are not separated ({sequence.mean:.3f} and {batch.mean:.3f})"
    return f"{sequence.mean:.3f} with the sequence loss, {batch.mean:.3f} with the batch loss"
