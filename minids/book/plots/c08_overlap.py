"""An overlapped pair: one layer's forward and backward, computing while the other communicates (chapter 8)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.patches import Rectangle

from minids.book.plots.c08_timeline import colour, key
from minids.book.plots.diagram import FAINT, Diagram
from minids.book.plots.style import MUTED, PALE, PAPER, PT_PER_INCH, WIDTH, Picture, styled
from minids.parallel.schedules import one_f_one_b
from minids.validation import require

PAGE = WIDTH * PT_PER_INCH

# What a layer with experts does for a micro-batch, and what each part needs.
NEEDS = {
    "attention F": "combine F", "dispatch F": "attention F", "MLP F": "dispatch F", "combine F": "MLP F",
    "combine B": "attention I", "MLP I": "combine B", "MLP W": "MLP I", "dispatch B": "MLP I",
    "attention I": "dispatch B", "attention W": "attention I",
}  # fmt: skip
MESSAGES = {"dispatch F": 1, "combine F": 2, "combine B": 1, "dispatch B": 2}  # in FP8 1, in BF16 2 (report, §3.3.3)
FORWARD = ("attention F", "dispatch F", "MLP F", "combine F")
BACKWARD = ("combine B", "MLP I", "MLP W", "dispatch B", "attention I", "attention W")
# The order of the report's figure 4.
PAIR = ("MLP I", "MLP W", "dispatch F", "MLP F", "dispatch B", "attention I", "attention W", "combine F",
        "attention F", "combine B")  # fmt: skip


def layer_after_layer(order: Sequence[str], communication: float) -> tuple[float, dict[str, tuple[float, float]]]:
    """Return the time of a layer in a long chain of layers, and the start and end of what it does.

    Computations and messages run side by side, each kind in the order given. A computation takes 1.
    """
    ends, free, found = {}, [0.0, 0.0], []
    for _ in range(16):
        layer = {}
        for name in order:
            queue = name in MESSAGES
            start = max(free[queue], ends.get(NEEDS[name], 0.0))
            ends[name] = free[queue] = start + (communication * MESSAGES[name] if queue else 1)
            layer[name] = start, ends[name]
        found.append(layer)
    begin = min(start for start, _ in found[-2].values())
    period = found[-1][order[0]][0] - found[-2][order[0]][0]
    return period, {name: (start - begin, end - begin) for name, (start, end) in found[-2].items()}


@styled()
def draw_overlap(communication: float = 1.0) -> Picture:
    """Draw a layer's forward and backward one after the other, and as a pair.

    `communication` is the time of all messages, relative to that of all computations.
    """
    require("communication", communication, 0 <= communication <= 2, "a number from 0 to 2")
    forward, backward, pair = (layer_after_layer(order, communication) for order in (FORWARD, BACKWARD, PAIR))
    alone, products = forward[0] + backward[0], len(NEEDS) - len(MESSAGES)
    d = Diagram(height=288)
    left, unit = 92, (640 - 92) / alone
    finding = (f"One after the other, computing waits {1 - products / alone:.0%} of the time for messages; as a pair, "
               f"{1 - products / pair[0]:.0%}")  # fmt: skip
    d.text(13, d.height - 25, finding, size=14)
    _lanes(d, left, unit, d.height - 56, f"one after the other: F {forward[0]:g}, then B {backward[0]:g}",
           [(forward, 0.0, True), (backward, forward[0], True)], alone)  # fmt: skip
    _lanes(d, left, unit, d.height - 170, f"a pair, of different micro-batches: F&B {pair[0]:g}",
           [(pair, 0.0, True), (pair, pair[0], False)], alone)  # fmt: skip
    if (room := (alone - pair[0]) * unit) > 96:  # points, wide enough for the words
        d.text(left + alone * unit - room / 2, d.height - 170 - 23, "the next layers", ha="center", va="center",
               color=MUTED)  # fmt: skip
    key(d.figure, 8 / d.height, one_f_one_b(1, 1), x=13 / PAGE)
    d.text(418, 8, "messages: F forward, B backward", color=MUTED)
    d.figure.alt = (
        f"{finding}. A layer takes {forward[0]:g} for the forward and {backward[0]:g} for the backward, and "
        f"{pair[0]:g} for both as a pair: "
        + ", ".join(f"{name} from {start:g} to {end:g}" for name, (start, end) in pair[1].items())
    )
    return d.figure


def _lanes(d: Diagram, left: float, unit: float, top: float, title: str, layers: list, length: float) -> None:
    """Draw products above messages, with an arrow wherever one waits for the other."""
    high, space = 34, 14
    lanes = {False: top - high - 6, True: top - 2 * high - space - 6}
    d.text(left, top, title, weight="bold")
    for queue, name in ((False, "computing"), (True, "messages")):
        d.text(left - 10, lanes[queue] + high / 2, name, ha="right", va="center")
        d.ax.add_artist(Rectangle((left, lanes[queue]), length * unit, high, facecolor=FAINT, edgecolor="none"))
    for (period, parts), begin, lit in layers:
        for name, (start, end) in parts.items():
            if end == start:
                continue
            if start >= period:  # computed while the next layer has begun; drawn is that of the layer before
                start, end = start - period, end - period
            start, end = start + begin, min(end + begin, length)
            if start >= length:
                continue
            kind = "I" if name.endswith("B") else name[-1]
            x, wide, y = left + start * unit, (end - start) * unit, lanes[name in MESSAGES]
            d.ax.add_artist(Rectangle((x, y), wide, high, facecolor=colour(kind, 0) if lit else PALE,
                                      edgecolor=PAPER, linewidth=1.2, zorder=3))  # fmt: skip
            said = (name if wide >= 52 else name.replace("attention", "attn")).replace(" ", "\n")
            if wide >= 5.9 * max(map(len, said.split("\n"))) and lit:
                d.text(x + wide / 2, y + high / 2, said, ha="center", va="center", size=10.5, linespacing=1.15)
            need = NEEDS[name]
            crosses = need in parts and (need in MESSAGES) != (name in MESSAGES)
            if lit and crosses and parts[need][0] < parts[need][1] <= start - begin + 1e-9:
                down = name in MESSAGES
                x0 = left + (parts[need][1] + begin) * unit
                y0, y1 = (lanes[False], lanes[True] + high) if down else (lanes[True] + high, lanes[False])
                aside = -4 if down else 4  # two arrows in the same place
                d.line((x0 + aside, y0), (x + aside, y1), width=1.2)
