"""EPLB's steps by hand: replicate, sort, pack; and what happens where two replicas of an expert meet (chapter 9)."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.patches import Rectangle

from minids.book.plots.c09_placement import REPLICATED, Piece, by_eplb, listed, loads_of
from minids.book.plots.diagram import Diagram
from minids.book.plots.helpers import DASHED
from minids.book.plots.style import MUTED, PALE, PAPER, Picture, readable_on, styled
from minids.parallel.eplb import balanced_packing, replicate_experts
from minids.validation import require, require_whole

MOST_REPLICAS, MOST_GPUS, MOST_LOAD = 8, 3, 20
FLOOR, HEAD, ORDER = 91, 307, "①②③④⑤⑥⑦⑧"


def apart(counts: Sequence[int], load: Sequence[float], gpus: int) -> list[Piece] | None:
    """Return the placement of least busiest GPU in which no GPU has two replicas of an expert, found by trying all.

    None if there is no such placement.
    """
    room, best = sum(counts) // gpus, None
    for places in itertools.product(*(itertools.combinations(range(gpus), count) for count in counts)):
        pieces = [Piece(g, e, load[e] / counts[e]) for e, of_expert in enumerate(places) for g in of_expert]
        if all(sum(piece.gpu == gpu for piece in pieces) == room for gpu in range(gpus)):
            most = max(loads_of(pieces, gpus))
            if best is None or most < best[0]:
                best = most, pieces
    return best and best[1]


@styled()
def draw_packing_by_hand(load: Sequence[float] = (5, 3, 2), replicas: int = 4, gpus: int = 2) -> Picture:
    """Draw EPLB's steps on one node: replicate, sort, pack; and replicas kept apart, where packing puts two together.

    Loads are from 1 to 20. Raises ValueError for more than 8 replicas or 3 GPUs, and as `rebalance_experts` does.
    """
    require_whole("replicas", replicas, at_most=MOST_REPLICAS)
    require_whole("gpus", gpus, at_most=MOST_GPUS)
    require("load", load, all(1 <= one <= MOST_LOAD for one in load), f"numbers from 1 to {MOST_LOAD}")
    hand = Hand.of(load, replicas, gpus)
    d = Diagram(height=366)
    alternative = apart(hand.counts, hand.load, gpus) if hand.twice else None
    columns = len(hand.load) + replicas + gpus * (2 if alternative else 1)
    wide = min(34, 560 / columns - 6)
    unit = 138 / max(*hand.load, *loads_of(hand.packed, gpus), *loads_of(alternative or [], gpus))
    space = (626 - columns * (wide + 6)) / (3 if alternative else 2.4)
    space = min(space, 54) if alternative else space  # so that the sentence beside fits
    colors = {e: REPLICATED[e % len(REPLICATED)] if count > 1 else PALE for e, count in enumerate(hand.counts)}
    x = 14.0
    d.text(x, HEAD, "1  replicate", weight="bold", size=12)
    for e, count in enumerate(hand.counts):
        for i in range(count):
            _block(d, x, FLOOR + i * hand.load[e] / count * unit, wide, hand.load[e] / count * unit, e, colors[e])
        d.text(x + wide / 2, FLOOR - 15, _number(hand.load[e]), ha="center")
        x += wide + 6
    x += space
    d.text(14, FLOOR - 29, "loads of experts", color=MUTED)
    d.text(x, HEAD, "2  sort", weight="bold", size=12)
    d.text(x, FLOOR - 29, "loads of replicas", color=MUTED)
    for i, piece in enumerate(hand.packed):
        _block(d, x, FLOOR, wide, piece.load * unit, piece.expert, colors[piece.expert])
        d.text(x + wide / 2, FLOOR + piece.load * unit + 5, ORDER[i], ha="center")
        d.text(x + wide / 2, FLOOR - 15, _number(piece.load), ha="center")
        x += wide + 6
    x += space
    d.text(x, HEAD, "3  pack", weight="bold", size=12)
    _columns(d, x, wide, unit, hand.packed, gpus, colors, ordered=True)
    x += gpus * (wide + 6) + space
    if alternative:
        d.text(x, HEAD, "apart", weight="bold", size=12)
        d.text(min(x, 536), HEAD - 9, hand.if_doubled(alternative), va="top", linespacing=1.2)
        _columns(d, x, wide, unit, alternative, gpus, colors, ordered=False)
    finding = hand.finding()
    d.text(14, d.height - 26, finding, size=14)
    said = "1: for the highest load per replica.  2: the heaviest first.  3: onto the lightest GPU that has room."
    d.text(14, 29, said, color=MUTED)
    if hand.twice:
        d.text(14, 12, "Dashed: a replica on a GPU that has its expert already.", color=MUTED)
    loads = f"Loads of the GPUs: {_listed_loads(hand.packed, gpus)}"
    d.figure.alt = f"{finding}. {loads}. {listed(hand.packed, gpus)}."
    if alternative:
        doubled = hand.if_doubled(alternative).replace("\n", " ")
        d.figure.alt += f" Apart: {_listed_loads(alternative, gpus)}. {doubled}."
    return d.figure


@dataclass(frozen=True)
class Hand:
    """A placement by hand: loads and numbers of replicas by expert, and the replicas in the order of packing."""

    load: list[float]
    counts: list[int]
    packed: list[Piece]
    gpus: int

    @classmethod
    def of(cls, load: Sequence[float], replicas: int, gpus: int) -> Hand:
        by_eplb(load, replicas, 1, 1, gpus)  # refuses what cannot be placed
        experts, _, counts = (part[0].tolist() for part in replicate_experts(torch.tensor([list(load)]), replicas))
        share = torch.tensor([load[e] / counts[e] for e in experts])
        gpu_of = balanced_packing(share[None], gpus)[0][0].tolist()
        order = share.sort(descending=True).indices.tolist()
        packed = [Piece(gpu_of[i], experts[i], load[experts[i]] / counts[experts[i]]) for i in order]
        return cls([float(one) for one in load], counts, packed, gpus)

    @property
    def twice(self) -> list[tuple[int, int]]:
        """GPU and expert, once for each replica on a GPU that has another one of the expert."""
        held = Counter((piece.gpu, piece.expert) for piece in self.packed)
        return [at for at, count in sorted(held.items()) for _ in range(count - 1)]

    def finding(self) -> str:
        loads = f"load{'s' * (self.gpus > 1)} {_listed_loads(self.packed, self.gpus)}"
        extra, lost = len(self.packed) - len(self.load), len(self.twice)
        if not extra:
            return f"{len(self.load)} experts without further replicas: {loads}"
        if lost == 1 and self.counts[self.twice[0][1]] == 2:
            gpu, expert = self.twice[0]
            return f"Both replicas of expert {expert} are on GPU {gpu}, where the second one is useless"
        if lost:
            return (
                f"{lost} of {extra} further replicas {'is' if lost == 1 else 'are'} on a GPU with another one: {loads}"
            )
        each = "Two replicas of an expert" if extra == 1 else f"{extra} further replicas"
        return f"{each} are on different GPUs: {loads}"

    def if_doubled(self, alternative: list[Piece]) -> str:
        """Say what load the busiest GPU has if an expert's doubles that has two replicas on a GPU, in three lines."""
        expert = self.twice[0][1]
        together, separate = (
            max(loads_of([p._replace(load=p.load * (1 + (p.expert == expert))) for p in pieces], self.gpus))
            for pieces in (self.packed, alternative)
        )
        return f"If the load of\nexpert {expert} doubles:\n{_number(separate)} instead of {_number(together)}"


def _number(load: float) -> str:
    return f"{load:.2f}".rstrip("0").rstrip(".") if load < 10 else f"{load:.3g}"


def _listed_loads(pieces: list[Piece], gpus: int) -> str:
    *first, last = map(_number, loads_of(pieces, gpus))
    return f"{', '.join(first)} and {last}" if first else last


def _columns(
    d: Diagram, x: float, wide: float, unit: float, pieces: list[Piece], gpus: int, colors: dict[int, str],
    ordered: bool,
) -> None:  # fmt: skip
    """Draw the GPUs' stacks of replicas, those dashed that are a second one of an expert."""
    floor, held = [FLOOR] * gpus, set()
    for i, (gpu, expert, load) in enumerate(pieces):
        left = x + gpu * (wide + 6)
        again = (gpu, expert) in held
        held.add((gpu, expert))
        _block(d, left, floor[gpu], wide, load * unit, expert, colors[expert], ORDER[i] if ordered else "", again)
        floor[gpu] += load * unit
    for gpu, load in enumerate(loads_of(pieces, gpus)):
        middle = x + gpu * (wide + 6) + wide / 2
        d.text(middle, floor[gpu] + 6, _number(load), ha="center", weight="bold")
        d.text(middle, FLOOR - 15, f"{gpu}", ha="center")
    d.text(x + (gpus * (wide + 6) - 6) / 2, FLOOR - 29, "GPU", ha="center", color=MUTED)


def _block(
    d: Diagram, x: float, y: float, wide: float, high: float, expert: int, color: str, order: str = "",
    again: bool = False,
) -> None:  # fmt: skip
    d.ax.add_artist(Rectangle((x, y), wide, high, facecolor=color, edgecolor=PAPER, linewidth=1.2, zorder=3))
    if again:
        d.outline(x + 2, y + 2, wide - 4, high - 4, linestyle=DASHED)
    if high < 12:  # points: no room for a number
        return
    ink, middle = readable_on(color), y + high / 2
    d.text(x + wide * (0.7 if order else 0.5), middle, f"{expert}", ha="center", va="center", color=ink, weight="bold")
    if order:
        d.text(x + wide * 0.28, middle, order, ha="center", va="center", color=ink)
