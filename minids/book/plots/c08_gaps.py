"""A model cut into stages, and the reason of each gap in a schedule (chapter 8)."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.patches import FancyArrowPatch

from minids.book.plots.c08_timeline import KINDS, draw_rows, frame, key, label_ranks, name_of
from minids.book.plots.diagram import Diagram
from minids.book.plots.style import INK, MUTED, PARTS, Picture, new_figure, styled, tint
from minids.model.config import ModelConfig
from minids.parallel.schedules import SCHEDULES
from minids.parallel.simulate import Span, Timeline, Times, simulate
from minids.parallel.stages import layers_of
from minids.validation import require, require_whole

TINY = ModelConfig.preset("tiny")


@styled()
def draw_stages(stages: int = 4, config: ModelConfig = TINY) -> Picture:
    """Draw what each stage holds and what stages send to one another.

    Raises ValueError for more stages than layers, or than have room.
    """
    require_whole("stages", stages, at_least=1)
    require("stages", stages, stages <= 4, "at most 4")
    layers = layers_of(config, stages)
    most = max(map(len, layers)) + 3
    d = Diagram(height=136 + 25 * most)
    d.text(
        13,
        d.height - 26,
        f"{config.num_hidden_layers} layers in {stages} stage{'s' * (stages > 1)}: "
        "neighbours exchange x and its gradient",
        size=14,
    )
    space = 36 if stages > 1 else 0
    width = (648 - 26 - space * (stages - 1)) / stages
    for s, own in enumerate(layers):
        x, top = 13 + s * (width + space), d.height - 68
        d.panel(x, 40, width, top - 22, f"stage {s}")
        boxes = [("embedding", PARTS["embedding"])] if s == 0 else []
        boxes += [(f"layer {i}" + ", MoE" * (config.is_moe_layer(i) and width > 90),
                   PARTS["routed"] if config.is_moe_layer(i) else PARTS["dense"]) for i in own]  # fmt: skip
        if s == stages - 1:
            boxes += [("norm, head", PARTS["head"])] + [("MTP", PARTS["mtp"])] * bool(config.num_nextn_predict_layers)
            if s and config.num_nextn_predict_layers:
                boxes += [("embedding" + ", copy" * (width > 110), PARTS["embedding"])]
        for i, (name, face) in enumerate(boxes):
            d.box(x + 8, top - 32 - 25 * i, width - 16, 21, name, color=tint(face, 0.6))
        if s < stages - 1:
            _arrow(d, x + width, x + width + space, top - 60, KINDS["F"], "x")
            _arrow(d, x + width + space, x + width, top - 95, KINDS["I"], "dx")
    d.text(13, 16, "x, forward: the residual stream, B × T × hidden.    dx, backward: the gradient of the loss with "
           "respect to x.", color=MUTED)  # fmt: skip
    d.figure.alt = f"{config.num_hidden_layers} layers in {stages} stages: " + "; ".join(
        f"stage {s} has layers {own.start} to {own.stop - 1}" for s, own in enumerate(layers)
    )
    return d.figure


def _arrow(d: Diagram, start: float, end: float, y: float, color: str, text: str) -> None:
    d.ax.add_artist(FancyArrowPatch((start, y), (end, y), arrowstyle="-|>,head_length=5,head_width=3", color=color,
                                    linewidth=2.5, shrinkA=2, shrinkB=2, mutation_scale=1, zorder=5))  # fmt: skip
    d.text((start + end) / 2, y + 5, text, size=12, ha="center", weight="bold")


@dataclass(frozen=True)
class Gap:
    """Time in which a rank is idle. `next` is what it does afterwards, None at the end."""

    rank: int
    start: float
    end: float
    next: Span | None


def gaps_of(timeline: Timeline) -> list[Gap]:
    """Return all gaps, rank by rank."""
    found = []
    for rank, row in enumerate(timeline.spans):
        clock = 0
        for span in row:
            if span.start > clock:
                found.append(Gap(rank, clock, span.start, span))
            clock = span.end
        if timeline.length > clock:
            found.append(Gap(rank, clock, timeline.length, None))
    return found


def reason(gap: Gap) -> str:
    """Return why a rank is idle, in a sentence."""
    duration = f"Rank {gap.rank} is idle for {float(gap.end - gap.start):g}"
    if gap.next is None:
        return f"{duration}: its work is done, and the step ends when the last rank has finished."
    cause = gap.next.cause
    return f"{duration}: it must do {gap.next.action} next, and needs {cause.action} of rank {cause.rank} for it."


@styled()
def draw_gap(name: str = "1F1B", gap: int = 0, ranks: int = 4, micro_batches: int = 4, F: float = 1, I: float = 1,
             W: float = 1) -> Picture:  # fmt: skip
    """Draw a schedule with one of its gaps, and the chain of actions that the gap waits for.

    Gap -1 shows the critical path instead. Raises ValueError for a gap that the schedule does not have.
    """
    schedule, times = SCHEDULES[name](ranks, micro_batches), Times(F=F, I=I, W=W)
    timeline = simulate(schedule, times)
    gaps = gaps_of(timeline)
    require_whole("gap", gap, at_least=-1)
    require("gap", gap, gap < len(gaps), f"at most {len(gaps) - 1}: this schedule has {len(gaps)} gaps")
    fig = new_figure(height=1.85 + 0.42 * ranks)
    high = fig.get_size_inches()[1]
    ax = fig.add_axes((0.075, 1.1 / high, 0.905, 0.42 * ranks / high))
    if gap < 0:
        chain = timeline.critical_path()
        title = f"{name_of(schedule, name)}: the critical path has length {float(timeline.length):g}"
        said = "Outlined: each of these actions waits for the one before, from the first to the last moment."
    else:
        chosen = gaps[gap]
        chain, span = [], chosen.next and chosen.next.cause
        while span is not None:
            chain, span = [span, *chain], span.cause
        idle, _, why = reason(chosen).partition(": ")
        title, said = f"{name_of(schedule, name)}: r{idle[1:]}", why[0].upper() + why[1:]
        said += "\nOutlined: the chain of actions that this one waits for." if chain else ""
    lit = {id(span) for span in chain}
    draw_rows(ax, timeline.spans, times, lit=lambda rank, i: id(timeline.spans[rank][i]) in lit or gap < 0)
    for span in chain:
        frame(ax, span.start, span.end, ranks - 1 - span.rank, edgecolor=INK, linewidth=1.8)
    for i, one in enumerate(gaps):
        style = dict(facecolor="#FFE9DC", hatch="////", edgecolor="#D55E00") if i == gap else {}
        frame(ax, one.start, one.end, ranks - 1 - one.rank, **{"facecolor": "none", "linewidth": 0} | style)
    label_ranks(ax, ranks)
    fig.title(title, y=1 - 0.28 / high)
    fig.note(0.075, 0.92 / high, said, va="top", linespacing=1.4)
    key(fig, 0.16 / high, schedule, x=0.075)
    fig.alt = f"{title}. {said}".replace("\n", " ")
    return fig
