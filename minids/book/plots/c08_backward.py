"""The backward pass in two halves, and schedules of smaller stages at the same model (chapter 8)."""

from __future__ import annotations

from minids.book.plots.c08_timeline import colour, draw_rows, key, label_ranks
from minids.book.plots.diagram import Diagram
from minids.book.plots.style import INK, MUTED, PALE, Picture, new_figure, styled
from minids.parallel.schedules import SCHEDULES
from minids.parallel.simulate import Times, simulate

STAGES = 4
PANEL, SPACE, LEFT = 134.0, 28.0, 14.0  # width of a stage, between two, beside the first
ROWS = {"F": 214.0, "I": 146.0, "W": 82.0}  # lower edges of the boxes
HIGH = 32.0
FORMULAS = {"F": "$y$ from $x$", "I": "$dx = dy\\,W$", "W": "$dW = dy^T x$"}


@styled()
def draw_halves(split: bool = True) -> Picture:
    """Draw what each half of the backward pass needs and who waits for it, for one micro-batch in four stages.

    The thick line is the longest chain in which each action waits for the one before.
    """
    d = Diagram(height=318)
    finding = (
        f"Only the optimizer waits for W. The longest chain: {STAGES} F + {STAGES} I" if split else
        f"Each stage waits for W of the stage after it. The longest chain: {STAGES} F + {STAGES} I + {STAGES} W"
    )  # fmt: skip
    d.text(LEFT, 298, finding, size=14)
    d.box(LEFT, 12, STAGES * PANEL + (STAGES - 1) * SPACE, 24, "optimizer, at the end of the step", color=PALE)
    for s in range(STAGES):
        x = LEFT + s * (PANEL + SPACE)
        left, right, following = x + 32, x + PANEL - 8, x + PANEL + SPACE
        center = (left + right) / 2
        d.panel(x, 58, PANEL, 226, f"stage {s}")
        for kind, y in ROWS.items():
            start = x + 8 if kind == "F" else left
            d.box(start, y, right - start, HIGH, color=colour(kind, 0))
            d.text(start + 8, y + 11, kind, size=12, weight="bold")
            d.text(start + 26, y + 11, FORMULAS[kind])
        # x is kept for W, which also needs dy
        d.line((x + 20, ROWS["F"]), (x + 20, ROWS["W"] + 24), (left, ROWS["W"] + 24))
        d.text(x + 15, 126, "$x$", ha="right")
        d.line((center, ROWS["I"]), (center, ROWS["W"] + HIGH), width=1.3 if split else 3)
        d.text(center + 7, 126, "$dy$")
        d.line((center, ROWS["W"]), (center, 36))
        d.text(center + 7, 44, "$dW$")
        if not split:
            d.outline(left, ROWS["W"], right - left, ROWS["I"] + HIGH - ROWS["W"])
            d.text(left, ROWS["I"] + HIGH + 7, "B", size=12, weight="bold")
        arrives = ROWS["I"] + HIGH / 2
        if s == STAGES - 1:
            d.line((center, ROWS["F"]), (center, ROWS["I"] + HIGH), width=3)
            d.text(center + 7, 192, "loss")
            continue
        d.line((right, ROWS["F"] + HIGH / 2), (following + 8, ROWS["F"] + HIGH / 2), width=3)
        d.text(right + 22, ROWS["F"] + HIGH / 2 + 7, "$y$", ha="center")
        if split:
            d.line((following + 32, arrives), (right, arrives), width=3)
        else:
            leaves, turn = ROWS["W"] + 10, right + 22
            d.line((following + 32, leaves), (turn, leaves), (turn, arrives), (right, arrives), width=3)
        d.text(right + 22, arrives + 7, "$dx$", ha="center")
    d.figure.alt = finding
    return d.figure


@styled()
def draw_smaller_stages(micro_batches: int = 8, F: float = 1, I: float = 1, W: float = 1, ranks: int = 4) -> Picture:
    """Draw four schedules of the same model on one axis of time: one stage per rank, or two that take half as long."""
    made = {}
    for name in ("1F1B", "interleaved", "ZB1P", "ZBV"):
        schedule = SCHEDULES[name](ranks, micro_batches)
        times = Times(*(duration / schedule.chunks for duration in [F, I, W]))
        made[name] = schedule, times, simulate(schedule, times)
    length = max(float(timeline.length) for _, _, timeline in made.values())
    idle = {name: f"{float(timeline.idle[0]):g}" for name, (_, _, timeline) in made.items()}
    row, between = 0.225, 0.36
    high = 0.86 + len(made) * (ranks * row + between)
    fig = new_figure(height=high)
    finding = f"Two half stages per rank: 1F1B's idle time of {idle['1F1B']} becomes {idle['interleaved']}, "
    finding += f"ZB1P's {idle['ZB1P']} becomes {idle['ZBV']}"
    fig.title(finding, y=1 - 0.32 / high)
    top = high - 0.48
    for name, (schedule, times, timeline) in made.items():
        top -= between
        fig.text(0.075, (top + 0.07) / high, name, size=12, weight="bold")
        said = f"{schedule.stages} stages, each rank idle for {idle[name]} of {float(timeline.length):g}"
        fig.text(0.215, (top + 0.07) / high, said, size=11, color=MUTED)
        top -= ranks * row
        ax = fig.add_axes((0.075, top / high, 0.905, ranks * row / high))
        draw_rows(ax, timeline.spans, times, length=length)
        label_ranks(ax, ranks, size=10, color=MUTED)
        ax.plot([float(timeline.length)] * 2, [0, ranks], color=INK, linewidth=1.5, clip_on=False)
    key(fig, 0.12 / high, made["ZBV"][0], x=0.075)
    fig.alt = f"{finding}. " + ", ".join(f"{name}: {float(t.length):g} long" for name, (_, _, t) in made.items())
    return fig
