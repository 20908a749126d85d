"""Where the rows go: sorted by expert, computed in contiguous groups, added up again; and V2's token dropping.

The data are those of the toy layer (minids/book/toy.py), computed by the library's own functions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch, Polygon, Rectangle
from matplotlib.path import Path
from torch import Tensor

from minids.book.plots.c04_experts import ROUTER, V2
from minids.book.plots.diagram import FAINT, LINE, Diagram, two_decimals
from minids.book.plots.helpers import DASHED
from minids.book.plots.style import INK, MUTED, PAPER, Picture, readable_on, styled, tint
from minids.book.toy import WORDS, toy_input, toy_moe
from minids.model.moe import sort_by_expert
from minids.validation import require_whole

EXPERTS = tuple(to_hex(matplotlib.colormaps["viridis"](place)) for place in (0.12, 0.38, 0.62, 0.86))  # one each
DARK = "#50545B"  # of what is not lit, on a tinted ground
GREYS = matplotlib.colormaps["Greys"]
CELL, CHIP, PITCH = (7, 14), 16, 24  # points: one number of a vector, a choice, from row to row


@dataclass(frozen=True)
class Rows:
    """The rows of the toy's six tokens, in the order in which the experts read them."""

    x: Tensor  # (rows, D)
    token: list[int]  # from 0
    g: list[float]
    counts: list[int]  # of each expert
    outs: Tensor  # (rows, D), times g
    sums: Tensor  # (tokens, D)
    chosen: list[list[int]]  # of each token

    @classmethod
    def of_toy(cls) -> Rows:
        x, layer = toy_input(), toy_moe()
        weights, chosen, _ = layer.gate(x)
        rows, route = layer.dispatch(x, weights, chosen, layer.config.n_routed_experts)
        outs = layer.experts(rows, route.weight_R, route.counts_E)
        token, g, counts = (part.tolist() for part in (route.token_R, route.weight_R, route.counts_E))
        return cls(rows, token, g, counts, outs, layer.combine(outs, route, len(x)), chosen.tolist())

    @property
    def expert(self) -> list[int]:
        return [expert for expert, count in enumerate(self.counts) for _ in range(count)]


# ---------------------------------------------------------------------------------------------------
# Dispatch and combine

X, CHOICE, TABLE, GROUP, G, OUT, PLUS, SUM = 46, 94, 200, 282, 390, 419, 548, 560  # left edges, in points
GROUP_END = 384


@styled()
def draw_dispatch(token: int = 4) -> Picture:
    """Draw the way of the toy's tokens to their routed experts and back, one token's lit.

    A stripe of grey is one number of a vector, so that equal vectors look equal. The shared expert is not drawn: it
    computes all tokens, in their own order. Raises ValueError for a token that is not one of WORDS, counted from 1.
    """
    require_whole("token", token, at_most=len(WORDS))
    rows, lit = Rows.of_toy(), token - 1
    n, groups = len(rows.token), sum(count > 0 for count in rows.counts)
    d = Diagram(height=PITCH * n + 118)
    top = d.height - 74
    finding = f"{n} rows in {groups} contiguous groups: one product per expert, not one per row"
    d.text(14, d.height - 24, finding, size=14)
    heads = {"tokens": 14, "choices": 80, "dispatch": 134, "rows": TABLE, "experts": GROUP, "× g": G, "outputs": OUT,
             "combine": 484, "sums": SUM}  # fmt: skip
    for text, x in heads.items():
        operation = text in ("dispatch", "experts", "combine")
        d.text(x, top + 8, text, weight="bold" if operation else "normal")
    place = [top - PITCH * (i + 0.5) for i in range(n)]  # of the rows, and at the left of the choices
    home = [top - PITCH * n / len(WORDS) * (t + 0.5) for t in range(len(WORDS))]
    _tokens(d, rows, lit, home, place)
    _table(d, rows, lit, top)
    # On the left are the choices in the order of tokens.
    choices = [(t, expert) for t, chosen in enumerate(rows.chosen) for expert in chosen]
    for row, (t, expert) in enumerate(zip(rows.token, rows.expert, strict=True)):
        choice = choices.index((t, expert))
        _curve(d, (CHOICE + CHIP + 2, place[choice]), (TABLE - 3, place[row]), EXPERTS[expert], t == lit)
        _curve(d, (OUT + 6 * CELL[0] + 3, place[row]), (PLUS - 8, home[t]), EXPERTS[expert], t == lit)
    d.text(14, 14, _note(rows), color=MUTED)
    own = [i for i, t in enumerate(rows.token) if t == lit]
    d.figure.alt = (
        f"{finding}. Rows by expert: "
        + "; ".join(
            f"expert {e}: {', '.join(WORDS[t] for t, i in zip(rows.token, rows.expert, strict=True) if i == e)}"
            for e in range(len(rows.counts))
        )
        + f". “{WORDS[lit]}”, token {token}, has rows {' and '.join(str(i + 1) for i in own)}, "
        f"weights {' and '.join(two_decimals(rows.g[i]) for i in own)}"
    )
    return d.figure


def _note(rows: Rows) -> str:
    """Say which words have equal rows, where the toy has some, and what a stripe is."""
    same = [word for word in dict.fromkeys(WORDS) if WORDS.count(word) > 1]
    alike = [word for word in same if len({tuple(rows.chosen[t]) for t, w in enumerate(WORDS) if w == word}) == 1]
    return "".join(f"“{word}” is equal both times, so it has the same experts.  " for word in alike) + (
        "A stripe is one number, dark is high."
    )


def _look(lit: bool, pale: str = MUTED) -> dict:
    return {"size": 11, "va": "center", "weight": "bold" if lit else "normal", "color": INK if lit else pale}


def _tokens(d: Diagram, rows: Rows, lit: int, home: list[float], place: list[float]) -> None:
    """Draw the tokens with their choices at the left, and with their sums at the right."""
    choice = iter(place)
    for t, (word, y) in enumerate(zip(WORDS, home, strict=True)):
        d.text(X - 6, y, word, ha="right", **_look(t == lit))
        _stripes(d, X, y, toy_input()[t], 2, t == lit)
        for expert in rows.chosen[t]:
            _chip(d, CHOICE, next(choice) - CHIP / 2, expert, t == lit)
        d.plus(PLUS, y, lit=t == lit)
        _stripes(d, SUM, y, rows.sums[t], 0.6, t == lit)
        d.text(SUM + 6 * CELL[0] + 6, y, word, **_look(t == lit))


def _table(d: Diagram, rows: Rows, lit: int, top: float) -> None:
    """Draw the rows, the experts beside theirs, and what they return."""
    ends = list(itertools.accumulate(rows.counts, initial=0))
    for expert, (start, end) in enumerate(itertools.pairwise(ends)):
        low, height, color = top - PITCH * end, PITCH * (end - start), EXPERTS[expert]
        for x, right in ((TABLE, GROUP), (GROUP_END, OUT + 6 * CELL[0] + 3)):
            ground = {"facecolor": tint(color, 0.13), "edgecolor": "none", "zorder": 1}
            d.ax.add_artist(Rectangle((x, low), right - x, height, **ground))
        d.ax.add_artist(Rectangle((GROUP, low), GROUP_END - GROUP, height, facecolor=color, edgecolor=PAPER, zorder=3))
        count = f"{end - start} row{'s' * (end - start != 1)}"
        d.text((GROUP + GROUP_END) / 2, low + height / 2, f"expert {expert}: {count}", ha="center", va="center",
               color=readable_on(color))  # fmt: skip
        if start:
            d.ax.plot([TABLE, OUT + 6 * CELL[0] + 3], [low + height] * 2, color=INK, linewidth=1.2, zorder=3.5)
    for row, t in enumerate(rows.token):
        y, here = top - PITCH * (row + 0.5), t == lit
        d.text(TABLE + 31, y, WORDS[t], ha="right", **_look(here, DARK))
        _stripes(d, TABLE + 36, y, rows.x[row], 2, here)
        color, ink = ROUTER if here else tint(ROUTER, 0.35), INK if here else MUTED
        d.boxes(G, y - 8, [rows.g[row]], (25, 16), color, show=two_decimals, ink=ink)
        _stripes(d, OUT, y, rows.outs[row], 0.6, here)


def _stripes(d: Diagram, x: float, y: float, vector: Tensor, limit: float, lit: bool) -> None:
    """Draw a vector around the height y in shades of grey, from -limit to limit."""
    for i, share in enumerate((vector.clamp(-limit, limit) / limit).tolist()):
        shade = to_hex(GREYS(0.5 + 0.4 * share))
        d.ax.add_artist(
            Rectangle((x + i * CELL[0], y - CELL[1] / 2), *CELL, facecolor=shade if lit else tint(shade, 0.45),
                      edgecolor="none", zorder=3)
        )  # fmt: skip
    if lit:
        d.outline(x - 1, y - CELL[1] / 2 - 1, 6 * CELL[0] + 2, CELL[1] + 2)


def _chip(d: Diagram, x: float, y: float, expert: int, lit: bool) -> None:
    """Draw a choice: the number of an expert on its colour."""
    d.boxes(x, y, [expert], (CHIP, CHIP), EXPERTS[expert] if lit else tint(EXPERTS[expert], 0.45), show=str)


def _curve(d: Diagram, start: tuple[float, float], end: tuple[float, float], color: str, lit: bool) -> None:
    """Draw the way of one row, with an arrowhead at its end."""
    color, order = (color, 2.6) if lit else (tint(color, 0.5), 2)
    (x, y), middle = end, (start[0] + end[0]) / 2
    path = Path([start, (middle, start[1]), (middle, y), (x - 4, y)], [Path.MOVETO] + 3 * [Path.CURVE4])
    d.ax.add_artist(
        PathPatch(path, facecolor="none", edgecolor=color, linewidth=2.6 if lit else 1.1, zorder=order)
    )  # fmt: skip
    half = 4 if lit else 2.5
    d.ax.add_artist(Polygon([(x - 2 * half, y - half), (x, y), (x - 2 * half, y + half)], color=color, zorder=order))


# ---------------------------------------------------------------------------------------------------
# Token dropping

SLOT, LANE = (66, 26), 50  # points: a slot, from expert to expert
FIRST, TOKENS = 92, 500  # left edges of the slots and of the tokens' list


def by_affinity() -> list[list[tuple[int, float]]]:
    """Return each expert's rows, as token (from 0) and affinity, highest first, with V2's gate.

    Of equal affinities, the earlier token's is first.
    """
    layer = toy_moe(**V2)
    weights, chosen, _ = layer.gate(toy_input())
    route = sort_by_expert(weights, chosen, layer.config.n_routed_experts)
    groups = zip(*(part.split(route.counts_E.tolist()) for part in (route.token_R, route.weight_R)), strict=True)
    return [
        [(tokens[i].item(), affinities[i].item()) for i in torch.argsort(-affinities, stable=True).tolist()]
        for tokens, affinities in groups
    ]


@styled()
def draw_dropping(capacity: int = 3) -> Picture:
    """Draw which of the toy's rows DeepSeek-V2's token dropping computes, with so many slots per expert.

    V2 dropped rows in training only. Each device had a capacity, its average load, and dropped the rows of lowest
    affinity beyond it. About a tenth of the sequences was exempt. Here each expert is a device. V3 drops nothing.
    Raises ValueError for a capacity that is not from 1 to the highest load.
    """
    lanes = by_affinity()
    loads = [len(lane) for lane in lanes]
    require_whole("capacity", capacity, at_most=max(loads))
    d = Diagram(height=342)
    top = d.height - 82
    dropped = {(lane[i][0], expert) for expert, lane in enumerate(lanes) for i in range(capacity, len(lane))}
    slots, empty = capacity * len(lanes), sum(max(capacity - load, 0) for load in loads)
    finding = _dropping_finding(capacity, sum(loads), dropped)
    if not dropped:
        finding += f", and leaves {empty} of {slots} slots empty"
    d.text(14, d.height - 24, finding, size=14)
    d.text(14, top + 24, "expert", size=12)
    d.text(FIRST, top + 24, "its rows, highest affinity first", size=12)
    d.text(TOKENS, top + 24, "tokens’ experts", size=12)
    for expert, lane in enumerate(lanes):
        _lane(d, top - LANE * (expert + 0.5), expert, lane, capacity)
    x = FIRST + capacity * (SLOT[0] + 6) - 3
    d.ax.plot([x, x], [top + 10, top - LANE * len(lanes) + 2], color=INK, linewidth=2.2, zorder=5)
    d.text(x, top - LANE * len(lanes) - 12, f"capacity {capacity}", size=12, ha="center", weight="bold")
    _kept(d, top, LANE * len(lanes), dropped)
    average, count = sum(loads) / len(loads), f"{capacity} slot{'s' * (capacity != 1)}"
    factor = f"Capacity factor {capacity / average:.2f}: {count} for {average:g} rows on average."
    d.text(14, 32, f"{factor} {empty} of {slots} slots stay empty.", color=MUTED)
    d.text(14, 14, "DeepSeek-V2 dropped per device, in training only. Here each expert is a device.", color=MUTED)
    d.figure.alt = f"{finding}. " + "; ".join(
        f"expert {expert} keeps {_list(lane[:capacity])}"
        + (f" and drops {_list(lane[capacity:])}" if lane[capacity:] else "")
        for expert, lane in enumerate(lanes)
    )
    return d.figure


def _list(rows: Sequence[tuple[int, float]]) -> str:
    return ", ".join(f"{WORDS[token]} ({token + 1}) {two_decimals(affinity)}" for token, affinity in rows)


def _dropping_finding(capacity: int, rows: int, dropped: set[tuple[int, int]]) -> str:
    losers = [token for token, _ in dropped]
    if not dropped:
        return f"Capacity {capacity} drops none of {rows} rows"
    both = sum(losers.count(token) == 2 for token in set(losers))
    finding = f"Capacity {capacity} drops {len(dropped)} of {rows} rows ({len(dropped) / rows:.0%}): "
    finding += f"{len(set(losers))} of {len(WORDS)} tokens lose an expert"
    return finding + (f", {both} lose both" if both else "")


def _lane(d: Diagram, y: float, expert: int, lane: list[tuple[int, float]], capacity: int) -> None:
    """Draw the rows of an expert around the height y, in its slots and beyond, and the slots that stay empty."""
    d.boxes(14, y - CHIP / 2, [expert], (CHIP, CHIP), EXPERTS[expert], show=str)
    d.text(36, y, f"{len(lane)} row{'s' * (len(lane) != 1)}", va="center")
    for i in range(max(len(lane), capacity)):
        corner = FIRST + i * (SLOT[0] + 6), y - SLOT[1] / 2
        if i >= len(lane):
            d.outline(*corner, *SLOT, edgecolor=LINE, linewidth=1, linestyle=DASHED)
            continue
        kept, (token, affinity) = i < capacity, lane[i]
        face = EXPERTS[expert] if kept else FAINT
        ink = readable_on(face) if kept else DARK
        d.ax.add_artist(Rectangle(corner, *SLOT, facecolor=face, edgecolor="none" if kept else LINE, zorder=3))
        d.text(corner[0] + 7, y, WORDS[token], va="center_baseline", color=ink)
        d.text(corner[0] + SLOT[0] - 6, y, two_decimals(affinity), va="center_baseline", ha="right", color=ink, size=10)
        if not kept:
            _cross(d, *corner, *SLOT)


def _cross(d: Diagram, x: float, y: float, width: float, height: float) -> None:
    for ends in ([y, y + height], [y + height, y]):
        d.ax.plot([x, x + width], ends, color="#A4A8AE", linewidth=1.3, zorder=3.5)  # under the text


def _kept(d: Diagram, top: float, height: float, dropped: set[tuple[int, int]]) -> None:
    """List the tokens with their experts, beside the lanes; experts that do not compute a token are crossed out."""
    chosen = toy_moe(**V2).gate(toy_input())[1].tolist()
    pitch = height / len(WORDS)
    for token, word in enumerate(WORDS):
        y = top - pitch * (token + 0.5)
        lost = sum((token, expert) in dropped for expert in chosen[token])
        d.text(TOKENS + 28, y, word, ha="right", **_look(lost > 0))
        for k, expert in enumerate(chosen[token]):
            x = TOKENS + 38 + k * (CHIP + 5)
            if (token, expert) in dropped:
                d.boxes(x, y - CHIP / 2, [expert], (CHIP, CHIP), FAINT, show=str, edge=LINE, ink=DARK)
                _cross(d, x, y - CHIP / 2, CHIP, CHIP)
            else:
                _chip(d, x, y - CHIP / 2, expert, True)
        if lost:
            d.text(TOKENS + 84, y, "loses both" if lost == 2 else "loses one", size=10, va="center")
