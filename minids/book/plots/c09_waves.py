"""How messages disappear behind computing: two micro-batches that alternate, and experts in waves (chapter 9).

A layer is attention, dispatch, experts and combine. One after the other, a GPU waits while messages travel. V3 gives it
a second micro-batch to compute meanwhile (report §3.4.1; in training, DualPipe). V4 needs no second one: the experts of
a layer are cut into waves. While one wave is computed, the tokens of the next one arrive, and the outputs of the one
before are sent back (V4 report §3.1). Only the first dispatch and the last combine have nothing beside them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from fractions import Fraction
from numbers import Real
from typing import NamedTuple

from matplotlib.patches import Rectangle

from minids.book.plots.diagram import FAINT, Diagram
from minids.book.plots.style import LAYERS, MUTED, PAPER, PARTS, PT_PER_INCH, WIDTH, Picture, styled, tint
from minids.validation import is_number, require, require_whole

COMPUTING, MESSAGES = "computing", "messages"
DISPATCH = Fraction(1, 3)  # of the time of messages: it is in FP8, combine in BF16
COLORS = {
    "attention": PARTS["attention"], "experts": PARTS["routed"], "dispatch": tint(LAYERS[7], 0.4),
    "combine": tint(LAYERS[7], 0.8),
}  # fmt: skip
LANE = {"attention": COMPUTING, "experts": COMPUTING, "dispatch": MESSAGES, "combine": MESSAGES}
STEADY = 12  # layers after which the chain repeats itself
WINDOW = 4  # on the axis, in units of attention: one batch with as much communication as computing
MOST_WAVES = 16


class Task(NamedTuple):
    """What occupies a resource for some time, after the tasks that it needs."""

    name: Hashable
    resource: str
    duration: Real
    needs: tuple[Hashable, ...] = ()


def run(tasks: Sequence[Task]) -> dict[Hashable, tuple[Real, Real]]:
    """Return when each task starts and ends. A resource does its tasks in the order given, each as early as possible.

    Raises ValueError for a task that needs one that is not before it.
    """
    spans, free = {}, {}
    for task in tasks:
        for need in task.needs:
            require("needs", need, need in spans, f"the name of a task before {task.name}")
        start = max([free.get(task.resource, 0), *(spans[need][1] for need in task.needs)])
        free[task.resource] = start + task.duration
        spans[task.name] = start, free[task.resource]
    return spans


def chain(layers: int, micro_batches: int, waves: int, communication: Real) -> list[Task]:
    """Return the tasks of some layers: names are (what, layer, part), a part is a wave of a micro-batch.

    Attention of the whole batch takes 1, and so do its experts; its messages take `communication` times both together.
    """
    parts = micro_batches * waves
    dispatch, combine = (2 * communication * share / parts for share in (DISPATCH, 1 - DISPATCH))
    tasks = []
    for layer in range(layers):
        for batch in range(micro_batches):
            needs = tuple(("combine", layer - 1, batch * waves + wave) for wave in range(waves)) if layer else ()
            tasks.append(Task(("attention", layer, batch), COMPUTING, Fraction(1, micro_batches), needs))
        for part in range(-1, parts):  # the next part is on its way before this one is computed
            if (then := part + 1) < parts:
                tasks.append(
                    Task(("dispatch", layer, then), MESSAGES, dispatch, (("attention", layer, then // waves),))
                )
            if part >= 0:
                tasks.append(
                    Task(("experts", layer, part), COMPUTING, Fraction(1, parts), (("dispatch", layer, part),))
                )
                tasks.append(Task(("combine", layer, part), MESSAGES, combine, (("experts", layer, part),)))
    return tasks


def period(spans: dict, steady: int = STEADY) -> Real:
    """Return the time of a layer in a long chain."""
    return (spans["attention", 2 * steady, 0][0] - spans["attention", steady, 0][0]) / steady


@styled()
def draw_waves(waves: int = 4, communication: float = 0.5) -> Picture:
    """Draw three ways to compute a layer: one batch, two micro-batches, and experts in waves.

    `communication` is the time of messages, relative to that of computing. Raises ValueError for other numbers of waves
    than 1 to 16, and for communication that is not from 0 to 1.
    """
    require_whole("waves", waves, at_most=MOST_WAVES)
    valid = is_number(communication) and 0 <= communication <= 1
    require("communication", communication, valid, "a number from 0 to 1")
    exact = Fraction(communication).limit_denominator(1000)
    some_waves = f"{waves} wave{'s' * (waves > 1)}"
    kinds = {"one batch": (1, 1), "two micro-batches": (2, 1), f"experts in {some_waves}": (1, waves)}
    d = Diagram(height=364)
    said, waits = [], []
    for i, (name, (micro_batches, of)) in enumerate(kinds.items()):
        spans = run(chain(2 * STEADY + 1 + WINDOW, micro_batches, of, exact))
        length = period(spans)
        waits.append(f"{float(1 - 2 / length):.0%}")
        title = f"{name}: a layer takes {float(length):.2f}, of which computing waits {float(length - 2):.2f}"
        _lanes(d, d.height - 66 - 92 * i, title, spans)
        said.append(title)
    finding = f"Computing waits {waits[0]} of the time; with two micro-batches {waits[1]}, with {some_waves} {waits[2]}"
    d.text(13, d.height - 25, finding, size=14)
    x = 13
    for what, color in COLORS.items():
        d.text(x, 26, "■", size=12, color=color)
        d.text(x + 14, 26, what, color=MUTED)
        x += 32 + 6.2 * len(what)
    d.text(x + 4, 26, "pale: the layers before and after", color=MUTED)
    times = f"attention 1, experts 1, messages {float(exact):g} × both together"
    d.text(13, 8, f"{times} (combine, in BF16, twice dispatch, in FP8)", color=MUTED)
    d.figure.alt = f"{finding}. {'; '.join(said)}. Times: {times}."
    return d.figure


def _lanes(d: Diagram, top: float, title: str, spans: dict) -> None:
    """Draw what is computed above what travels, from the start of a layer; those before and after it are pale."""
    left, high, begin = 92, 25, spans["attention", STEADY, 0][0]
    unit = (WIDTH * PT_PER_INCH - 10 - left) / WINDOW
    lanes = {COMPUTING: top - high - 7, MESSAGES: top - 2 * high - 11}
    d.text(left, top, title, weight="bold")
    for lane, y in lanes.items():
        d.text(left - 10, y + high / 2, lane, ha="right", va="center")
        d.ax.add_artist(Rectangle((left, y), WINDOW * unit, high, facecolor=FAINT, edgecolor="none"))
    for (what, layer, part), (start, end) in spans.items():
        start, end = max(start - begin, 0), min(end - begin, WINDOW)
        if start >= end:
            continue
        x, wide, y = left + float(start) * unit, float(end - start) * unit, lanes[LANE[what]]
        lit = layer == STEADY
        color = COLORS[what] if lit else tint(COLORS[what], 0.25)
        edge = {"edgecolor": PAPER, "linewidth": min(1.2, wide / 6), "zorder": 3}
        d.ax.add_artist(Rectangle((x, y), wide, high, facecolor=color, **edge))
        if lit:
            last = sum(key[:2] == (what, layer) for key in spans)  # its number decides for all, so none is missing
            number, widest = (f"{n}" * (last > 1) for n in (part + 1, last))
            texts = {f"{what} {widest}".strip(): f"{what} {number}".strip(), widest: number}
            text = next((text for room, text in texts.items() if wide >= 5.8 * len(room) + 3), "")
            d.text(x + wide / 2, y + high / 2, text, ha="center", va="center", size=10)
