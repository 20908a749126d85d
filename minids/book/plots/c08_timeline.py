"""Schedules in time, one row for each rank (chapter 8). The colours are those of the actions in the whole chapter."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.patches import Rectangle

from minids.book.plots.style import (
    INK,
    LAYERS,
    MUTED,
    PALE,
    PAPER,
    PT_PER_INCH,
    WIDTH,
    Picture,
    new_figure,
    styled,
    tint,
)
from minids.parallel.schedules import SCHEDULES, Action, Pair, Schedule
from minids.parallel.simulate import Span, Times, simulate

KINDS = {"F": LAYERS[5], "I": LAYERS[3], "W": LAYERS[6]}
WORDS = {"F": "F forward", "I": "I input gradient", "W": "W weight gradient"}
LIGHT, FULL = 0.5, 1.0  # shares of the colour: chunk or direction 0, and the other one
SMALLEST = 15  # points of width that a number of two digits needs


def colour(kind: str, chunk: int) -> str:
    return tint(KINDS[kind], FULL if chunk else LIGHT)


def pieces(
    action: Action | Pair, start: float, end: float, times: Times
) -> list[tuple[str, float, float, float, float]]:
    """Return the coloured boxes of an action: colour, left, right, bottom and top within its row, from 0 to 1.

    A full backward is its two gradients, one after the other. In a pair the forward is above the backward.
    """
    boxes = []
    for part in action.parts:
        low, high = (0, 1) if len(action.parts) == 1 else (0.5, 1) if part.kind == "F" else (0, 0.5)
        if part.kind == "B":
            middle = start + (end - start) * (float(times.I / times.B) if times.B else 0.5)
            boxes.append((colour("I", part.chunk), start, middle, low, high))
            boxes.append((colour("W", part.chunk), middle, end, low, high))
        else:
            boxes.append((colour(part.kind, part.chunk), start, end, low, high))
    return boxes


def draw_rows(
    ax: Axes, rows: Sequence[Sequence[Span]], times: Times, *, length: float | None = None, lit=lambda rank, i: True,
    gap: float = 0.14, numbered=lambda rank, i: True, pair_size: float = 0.42,
) -> None:  # fmt: skip
    """Draw a timeline into axes: rank 0 on top, with the micro-batches' numbers where they fit.

    `lit(rank, i)` says which of a rank's actions have their colour; the others are pale. `numbered(rank, i)` says which
    have their numbers; those of pairs are `pair_size` of the box high.
    """
    length = float(length if length is not None else max((row[-1].end for row in rows if row), default=1))
    polygons, faces, outlines, unit = [], [], [], ax.get_position().width * WIDTH * PT_PER_INCH / length
    high = ax.get_position().height * ax.figure.get_size_inches()[1] * PT_PER_INCH / len(rows)
    for rank, row in enumerate(rows):
        floor = len(rows) - 1 - rank + gap / 2
        for i, span in enumerate(row):
            start, end = float(span.start), float(span.end)
            paired = len(span.action.parts) == 2
            for face, left, right, low, top in pieces(span.action, start, end, times):
                y0, y1 = floor + low * (1 - gap), floor + top * (1 - gap)
                polygons.append([(left, y0), (right, y0), (right, y1), (left, y1)])
                faces.append(face if lit(rank, i) else PALE)
            for part in span.action.parts if numbered(rank, i) else ():
                middle = floor + (1 - gap) * (0.5 if not paired else 0.75 if part.kind == "F" else 0.25)
                width, size = (end - start) * unit, min(11, high * (1 - gap) * (pair_size if paired else 0.7))
                if width >= SMALLEST * size / 11 * (1 if part.micro_batch > 9 else 0.38) and size >= 6:
                    ax.text((start + end) / 2, middle, f"{part.micro_batch}", size=size, ha="center",
                            va="center_baseline", color=INK if lit(rank, i) else MUTED)  # fmt: skip
            outlines.append([(start, floor), (end, floor), (end, floor + 1 - gap), (start, floor + 1 - gap)])
    ax.add_collection(PolyCollection(polygons, facecolors=faces, edgecolors="none"), autolim=False)
    ax.add_collection(PolyCollection(outlines, facecolors="none", edgecolors=PAPER, linewidths=1), autolim=False)
    ax.set(xlim=(0, length), ylim=(0, len(rows)), yticks=[])
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_xticks([])


def label_ranks(ax: Axes, ranks: int, *, size: float = 11, bold: int | None = None, color: str = INK) -> None:
    """Write the rank before each row, one of them bold."""
    for rank in range(ranks):
        ax.text(-0.01, ranks - rank - 0.5, f"rank {rank}", transform=ax.get_yaxis_transform(), ha="right", va="center",
                size=size, color=color, weight="bold" if rank == bold else "normal")  # fmt: skip


def frame(ax: Axes, start: float, end: float, row: int, **how) -> None:
    """Draw a rectangle over a row, counted from below, for some time."""
    how = {"facecolor": "none", "zorder": 5} | how
    ax.add_artist(Rectangle((float(start), row + 0.07), float(end - start), 0.86, **how))


def name_of(schedule: Schedule, name: str) -> str:
    ranks = f"{len(schedule)} rank{'s' * (len(schedule) > 1)}"
    return f"{name}, {ranks}, {schedule.micro_batches} micro-batch{'es' * (schedule.micro_batches > 1)}"


def key(fig: Picture, y: float, schedule: Schedule, x: float = 0.08) -> None:
    """Write what the colours mean."""
    for kind, words in WORDS.items():
        fig.text(x, y, "■", size=12, color=tint(KINDS[kind], LIGHT))
        if schedule.chunks > 1:
            fig.text(x + 0.018, y, "■", size=12, color=KINDS[kind])
        fig.text(x + (0.04 if schedule.chunks > 1 else 0.024), y, words, size=11, color=MUTED)
        x += 0.057 + 0.0105 * len(words)
    if schedule.chunks > 1:
        what = "direction 0 and 1" if schedule.pipes == 2 else "chunk 0 and 1"
        fig.text(x, y, f"light and dark: {what}", size=11, color=MUTED)


@styled()
def draw_schedule(
    name: str = "DualPipe", ranks: int = 8, micro_batches: int = 20, F: float = 1, I: float = 1, W: float = 1,
    overlap: float = 0.0, link: float = 0.0,
) -> Picture:  # fmt: skip
    schedule = SCHEDULES[name](ranks, micro_batches)
    times = Times(F, I, W, F + I + W - overlap * min(F, I + W), link)
    timeline = simulate(schedule, times)
    fig = new_figure(height=1.25 + 0.36 * max(ranks, 2))
    high = fig.get_size_inches()[1]
    ax = fig.add_axes((0.075, 0.45 / high, 0.84, 0.36 * ranks / high))
    draw_rows(ax, timeline.spans, times)
    label_ranks(ax, ranks)
    for rank, idle in enumerate(timeline.idle):
        ax.text(1.01, ranks - rank - 0.5, f"{float(idle):g}", transform=ax.get_yaxis_transform(), va="center", size=11,
                color=MUTED)  # fmt: skip
    fig.text(0.925, (0.45 + 0.36 * ranks + 0.06) / high, "idle", size=11, color=MUTED)
    finding = f"{name_of(schedule, name)}: {timeline.bubble:.0%} of the time is idle"
    fig.title(finding, y=1 - 0.34 / high)
    key(fig, 0.14 / high, schedule)
    fig.alt = finding
    return fig
