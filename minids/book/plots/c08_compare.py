"""Why DualPipe is idle, and all schedules compared at equal model and devices (chapter 8)."""

from __future__ import annotations

from functools import cache

from matplotlib.ticker import MaxNLocator, PercentFormatter

from minids.book.plots.c08_timeline import draw_rows, frame, key, label_ranks, name_of
from minids.book.plots.helpers import DASHED, label, label_ends, log_scale
from minids.book.plots.style import INK, LAYERS, MUTED, Picture, new_figure, styled
from minids.cost.pipeline import published_pipeline_cost
from minids.parallel.schedules import SCHEDULES, Schedule
from minids.parallel.simulate import Timeline, Times, peak_activations, simulate
from minids.validation import require

RANKS = 8  # of the comparisons
COUNTS = (16, 32, 64, 128)  # micro-batches that every schedule can have on 8 ranks
FAMILIES = {  # colours of the schedules; those with two smaller stages per rank are dashed
    "GPipe": MUTED, "1F1B": LAYERS[0], "interleaved": LAYERS[0], "ZB1P": LAYERS[2], "ZBV": LAYERS[2],
    "DualPipe": LAYERS[1], "DualPipeV": LAYERS[1],
}  # fmt: skip

BESIDE = {"GPipe": ((12, 0), "left"), "interleaved": ((0, 12), "center"), "DualPipe": ((0, 15), "center"),
          "DualPipeV": ((12, 0), "left"), "ZBV": ((-10, 0), "right")}  # where labels stand, if not below  # fmt: skip


def waits(timeline: Timeline, rank: int) -> list[list[tuple[float, float]]]:
    """Return when a rank in the middle of DualPipe is idle, from when to when, in four groups.

    They are: before its first forward, before its first backward, after its last pair, and after its last action.
    """
    groups, clock, group = [[], [], [], []], 0, 0
    for span in timeline.spans[rank]:
        if span.start > clock:
            groups[group].append((clock, span.start))
        clock, group = span.end, 2 if len(span.action.parts) == 2 else max(group, 1)
    if timeline.length > clock:
        groups[3].append((clock, timeline.length))
    return groups


@styled()
def draw_waits(
    ranks: int = 8, micro_batches: int = 20, F: float = 2, I: float = 2, W: float = 1, overlap: float = 0.0
) -> Picture:
    """Draw DualPipe with its critical path and the idle time of the rank before the middle, in four parts."""
    schedule, k = SCHEDULES["DualPipe"](ranks, micro_batches), ranks // 2 - 1
    times = Times(F, I, W, F + I + W - overlap * min(F, I + W))
    timeline = simulate(schedule, times)
    groups = waits(timeline, k)
    found = [float(sum(end - start for start, end in group)) for group in groups]
    formulas = [
        (f"{k} F", k * F, "until the first micro-batch arrives"),
        (f"max(0, {k} I − {k + 1} F)", max(0, k * I - (k + 1) * F), "until the first backward arrives"),
        (f"{k} (F&B − B)", k * (times.pair - times.B), "its last forward goes to rank 0 and returns; B and I are left"),
        (f"{k} (I − W)", k * (I - W), "its last I goes to rank 0; only W is left"),
    ]
    fig = new_figure(height=2.45 + 0.34 * ranks)
    high = fig.get_size_inches()[1]
    ax = fig.add_axes((0.075, 1.6 / high, 0.905, 0.34 * ranks / high))
    path = timeline.critical_path()
    on_path = {id(span) for span in path}

    def lit(rank: int, i: int) -> bool:
        return rank == k or id(timeline.spans[rank][i]) in on_path

    draw_rows(ax, timeline.spans, times, lit=lit, numbered=lit, pair_size=0.49)
    for span in path:
        frame(ax, span.start, span.end, ranks - 1 - span.rank, edgecolor=INK, linewidth=1.8)
    for number, group in enumerate(groups, 1):
        for start, end in group:
            frame(ax, start, end, ranks - 1 - k, facecolor="#FFE9DC", edgecolor="#D55E00", linewidth=1.2)
            if (end - start) / timeline.length > 0.014:
                ax.text((start + end) / 2, ranks - k - 0.5, f"{number}", size=12, weight="bold", ha="center",
                        va="center_baseline", zorder=6)  # fmt: skip
    label_ranks(ax, ranks, bold=k)
    for i, (formula, value, why) in enumerate(formulas):
        y = (1.33 - 0.22 * i) / high
        fig.text(0.075, y, f"{i + 1}", size=11, weight="bold")
        fig.text(0.1, y, f"{formula} = {value:g}".replace("-", "−"), size=11)
        fig.text(0.32, y, why if value == found[i] else f"but here it is {found[i]:g}: {_limit(times)}", size=11,
                 color=MUTED if value == found[i] else LAYERS[2])  # fmt: skip
    report = published_pipeline_cost("DualPipe", ranks, F, times.B, W, times.pair).idle
    total = " + ".join(f"{wait:g}" for wait in found)
    finding = f"Rank {k} waits {total} = {sum(found):g}; the report’s formula gives {report:g}"
    fig.title(finding, y=1 - 0.3 / high)
    fig.note(0.02, 1 - 0.58 / high, f"F = {F:g}, I = {I:g}, W = {W:g}, F&B = {times.pair:g}; outlined in black: the "
             f"critical path; orange: rank {k} is idle")  # fmt: skip
    key(fig, 0.16 / high, schedule, x=0.075)
    fig.alt = f"{name_of(schedule, 'DualPipe')}, F = {F:g}, I = {I:g}, W = {W:g}, F&B = {times.pair:g}. {finding}."
    return fig


def _limit(times: Times) -> str:
    return "the formula needs W ≤ I" if times.W > times.I else "the formula needs F&B ≥ F and F&B ≥ B"


@cache
def _schedule(name: str, micro_batches: int) -> Schedule:
    return SCHEDULES[name](RANKS, micro_batches)


def compared(name: str, micro_batches: int, overlap: float = 0.0, link: float = 0.0) -> Timeline:
    """Return a schedule's timeline on 8 ranks, for a model of which an eighth takes F = I = W = 1.

    Where the model is cut into twice as many stages, each takes half as long; a message takes as long as before.
    """
    schedule = _schedule(name, micro_batches)
    part = RANKS / schedule.stages
    return simulate(schedule, Times(part, part, part, (3 - overlap) * part, link))


@styled()
def draw_bubble_share(overlap: float = 0.0, link: float = 0.0) -> Picture:
    """Draw the idle share of all schedules against the number of micro-batches, at equal model and devices."""
    timelines = {name: [compared(name, m, overlap, link) for m in COUNTS] for name in SCHEDULES}
    shares = {name: [one.bubble for one in row] for name, row in timelines.items()}
    lengths = {name: float(row[-1].length / (3 * COUNTS[-1])) for name, row in timelines.items()}
    fig = new_figure(height=5)
    ax = fig.add_axes((0.085, 0.13, 0.66, 0.63))
    ax.set(xlim=(COUNTS[0], COUNTS[-1]), xlabel="micro-batches in a step", ylabel="idle share of all ranks’ time")
    log_scale(ax, "x", lambda m: f"{m:g}", COUNTS, base=2)
    log_scale(ax, "y", lambda share: f"{share:.0%}", [0.01, 0.02, 0.05, 0.1, 0.2, 0.5])
    ax.set_ylim(0.006, 0.5)
    for name, row in shares.items():
        ax.plot(COUNTS, row, "o", color=FAMILIES[name], markersize=4, clip_on=False, linestyle=_line(name))
    ends = {f"{name}: {lengths[name]:.3f}": (row[-1], FAMILIES[name]) for name, row in shares.items()}
    label_ends(ax, ends, gap=0.105, lowest=-9, size=11)
    least = min(shares, key=lambda name: shares[name][-1])
    finding = f"F&B = {3 - overlap:g}: {least} is idle least, {_first(lengths, least)}"
    fig.title(finding, y=0.93)
    said = f"{RANKS} ranks, the same model; F = I = W = 1 for an eighth of it" + f", link = {link:g}" * bool(link)
    fig.note(0.02, 0.865, f"{said}; dashed: two stages per rank, half as large")
    header = f"length of a step with {COUNTS[-1]}\n(1: no idle time, no overlap)"
    fig.note(0.98, 0.755, header, ha="right", linespacing=1.3)
    each = "; ".join(f"{name} {row[-1]:.2%}, {lengths[name]:.3f}" for name, row in shares.items())
    fig.alt = f"{finding}. Idle with {COUNTS[-1]} micro-batches, and length of the step: {each}"
    return fig


def _first(lengths: dict[str, float], least: str) -> str:
    """Say which schedules end first, beside the one that is idle least."""
    first = [name for name in lengths if round(lengths[name], 3) == round(min(lengths.values()), 3)]
    return "and ends first" if first == [least] else f"but {' and '.join(first)} end{'s' * (len(first) == 1)} first"


def _line(name: str) -> str | tuple:
    schedule = _schedule(name, COUNTS[0])
    return DASHED if schedule.stages > RANKS else "solid"


def memory(name: str, micro_batches: int) -> tuple[float, int]:
    """Return a rank's peak activations and parameters, in units of what an eighth of the model has.

    Activations are those of one micro-batch.
    """
    schedule = _schedule(name, micro_batches)
    part = RANKS / schedule.stages
    return max(peak_activations(schedule)) * part, round(schedule.chunks * part)


@styled()
def draw_peak_memory(micro_batches: int = 32, overlap: float = 0.0, link: float = 0.0) -> Picture:
    """Draw activations and parameters in memory against the idle share, at equal model and devices."""
    require("micro_batches", micro_batches, micro_batches in COUNTS, ", ".join(map(str, COUNTS)))
    timelines = {name: compared(name, micro_batches, overlap, link) for name in SCHEDULES}
    shares = {name: one.bubble for name, one in timelines.items()}
    lengths = {name: one.length for name, one in timelines.items()}
    held = {name: memory(name, micro_batches) for name in SCHEDULES}
    fig = new_figure(height=4.6)
    ax = fig.add_axes((0.085, 0.14, 0.87, 0.6))
    top = 13
    ax.set(xlim=(0, 1.2 * max(shares.values())), ylim=(7, top), xlabel="idle share of all ranks’ time",
           ylabel="peak activations of a rank")  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for name, share in shares.items():
        activations, parameters = held[name]
        at, color = (share, min(activations, top)), FAMILIES[name]
        ax.plot(*at, "^" if activations > top else "o", markersize=11, color=color, clip_on=False)
        if parameters > 1:
            ax.plot(*at, "o", markersize=20, color=color, fillstyle="none", markeredgewidth=2)
        shift, align = BESIDE.get(name, ((0, -22), "center"))
        label(ax, f"{name}, {activations:g}", at, shift, size=12, color=color, ha=align)
    least = min(shares, key=shares.get)
    finding = f"{least} is idle least, {shares[least]:.1%} of the time, {_first(lengths, least)}"
    fig.title(finding, y=0.92)
    fig.note(0.02, 0.885, f"{RANKS} ranks, {micro_batches} micro-batches, F&B = {3 - overlap:g}; activations: 1 is "
             "those of one micro-batch in an eighth of the model\nring: two copies of the parameters", va="top",
             linespacing=1.3)  # fmt: skip
    fig.alt = f"{finding}. Idle share, peak activations, copies of parameters: " + "; ".join(
        f"{name} {shares[name]:.1%}, {held[name][0]:g}, {held[name][1]}" for name in SCHEDULES
    )
    return fig
