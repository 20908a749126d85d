"""The way of a few tokens to the ranks of their experts and back, in one hop or in two (chapter 9).

Four ranks on two nodes have two experts each. A square is a copy of a token with its weights g, a circle is a sum.
Every copy keeps its place when the hops change. (In memory, rows are in the order in which they arrive.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase

import numpy as np
from matplotlib.patches import Circle, PathPatch, Polygon, Rectangle
from matplotlib.path import Path

from minids.book.plots.diagram import LINE, Diagram, two_decimals
from minids.book.plots.style import INK, LAYERS, MUTED, PAPER, PARTS, Picture, styled, tint
from minids.cost.traffic import rows_between_nodes, rows_inside_nodes, traffic
from minids.validation import require, require_whole

RANKS, PER_NODE, EXPERTS = 4, 2, 8
TOKENS_OF_RANK, CHOICES = 2, 4  # at most: so many have room
LINKS = {"between nodes": LAYERS[2], "inside a node": LAYERS[1], "stay on their rank": MUTED}
LEFT, NODE, GAP, COLUMN = 100, 263, 14, 122  # points: left edge, width of a node, between nodes, width of a rank
HOME = 56  # widest distance of tokens, with their choices below them
GROUND = "#EBECEF"  # of what is not lit
SIDE, BOX = 15, (-27, 24)  # of a square; lower and upper edge of an expert, from its middle
HEIGHT = 470
# Heights of the middles: tokens, copies between the hops, copies, rows of the experts, and the same as sums.
TOKENS, VIA, COPIES, ROWS, SUMS, VIA_SUMS, RESULTS = 374, 304, 242, 194, 144, 95, 46


@dataclass(frozen=True)
class Journey:
    """Which ranks hold a copy of which token: pairs (rank, token), tokens counted over all ranks."""

    choices: list[list[int]]  # the experts of each token
    home: list[int]  # the rank of each token

    @classmethod
    def of(cls, experts_NK_by_rank: Sequence) -> Journey:
        choices = [np.asarray(experts_NK).tolist() for experts_NK in experts_NK_by_rank]
        require("experts_NK_by_rank", len(choices), len(choices) == RANKS, f"of {RANKS} ranks")
        most, chosen = max(map(len, choices)), max((len(row) for tokens in choices for row in tokens), default=0)
        require("experts_NK_by_rank", choices, 1 <= most <= TOKENS_OF_RANK and 1 <= chosen <= CHOICES,
                f"at most {TOKENS_OF_RANK} tokens of each rank, with at most {CHOICES} choices each")  # fmt: skip
        home = [rank for rank, tokens in enumerate(choices) for _ in tokens]
        return cls([chosen for tokens in choices for chosen in tokens], home)

    @property
    def tokens(self) -> list[tuple[int, int]]:
        return [(rank, token) for token, rank in enumerate(self.home)]

    @property
    def copies(self) -> list[tuple[int, int]]:
        """On the ranks that have one of a token's experts."""
        own = EXPERTS // RANKS
        return [(rank, t) for t, chosen in enumerate(self.choices) for rank in sorted({e // own for e in chosen})]

    @property
    def via(self) -> list[tuple[int, int]]:
        """After the first of two hops: on the rank of equal place in the nodes of these ranks."""
        return sorted({(self.through(rank, token), token) for rank, token in self.copies})

    def through(self, rank: int, token: int) -> int:
        """Return over which rank the token comes to this one, by two hops."""
        return rank // PER_NODE * PER_NODE + self.home[token] % PER_NODE


def link(one: int, other: int) -> str:
    """Return over what a row goes from one rank to another: a key of LINKS."""
    if one == other:
        return "stay on their rank"
    return "inside a node" if one // PER_NODE == other // PER_NODE else "between nodes"


@styled()
def draw_journey(
    experts_NK_by_rank: Sequence, hops: int = 1, token: int = 0, weights_NK_by_rank: Sequence | None = None
) -> Picture:
    """Draw dispatch and combine for the tokens of four ranks, one token's way lit.

    `experts_NK_by_rank` are the experts, of 8, that the tokens of each rank choose, (N, K) for each rank, and
    `weights_NK_by_rank` their weights, which are named if given. `token` is counted over all ranks, from 0. Raises
    ValueError for other numbers of ranks, and for more than 2 tokens of a rank or 4 choices.
    """
    journey = Journey.of(experts_NK_by_rank)
    require("hops", hops, hops in (1, 2), "1 or 2")
    require_whole("token", token, at_least=0, at_most=len(journey.home) - 1)
    counted = {n: traffic(experts_NK_by_rank, EXPERTS, PER_NODE, way) for n, way in ((1, "per rank"), (2, "two hops"))}
    d = Diagram(height=HEIGHT)
    finding = _finding(journey, hops, counted)
    d.text(14, HEIGHT - 26, finding, size=14)
    _ground(d, journey, hops, token)
    _key(d, counted[hops])
    home, copies, via = _places(journey.tokens, HOME), _places(journey.copies), _places(journey.via)
    for there, back, places in ((TOKENS, RESULTS, home), (COPIES, SUMS, copies), (VIA, VIA_SUMS, via))[: 1 + hops]:
        for (_, t), x in places.items():
            _square(d, x, there, t, len(journey.choices[t]), t == token)
            _circle(d, x, back, t, t == token)
    for (_, t), x in home.items():
        chosen = " ".join(map(str, journey.choices[t]))
        d.text(x, TOKENS - 22, chosen, ha="center", va="center", **_look(t == token))
    _ways(d, journey, hops, token)
    _rows(d, journey, token)
    weights = None
    if weights_NK_by_rank is not None:
        weights = [g for weights_NK in weights_NK_by_rank for g in np.asarray(weights_NK).tolist()][token]
    chosen = _chosen(journey, token, weights)
    d.text(LEFT, 12, chosen, color=MUTED)
    d.figure.alt = f"{finding}. {chosen} {_told(journey, hops, token)}"
    return d.figure


def _finding(journey: Journey, hops: int, counted: dict[int, np.ndarray]) -> str:
    one, two = (rows_between_nodes(counted[n], PER_NODE) for n in (1, 2))
    if hops == 2:
        fewer = f" instead of {one}" if two < one else ", as many as in one hop"
        return f"In two hops, {_copies(two)} cross{'es' * (two == 1)} to the other node{fewer}"
    choices, copies = sum(map(len, journey.choices)), len(journey.copies)
    but = "but " * (copies < choices)
    return f"{choices} choices, {but}{_copies(copies)}, one for each rank: {one} to the other node"


def _copies(number: int) -> str:
    return f"{number} cop{'y' if number == 1 else 'ies'}"


def _chosen(journey: Journey, token: int, weights: list[float] | None) -> str:
    experts = journey.choices[token]
    named = [
        f"{expert}" + (f" (g = {two_decimals(weights[k])})" if weights else "") for k, expert in enumerate(experts)
    ]
    return f"Token {ascii_lowercase[token]} chooses experts {', '.join(named)}."


def _told(journey: Journey, hops: int, token: int) -> str:
    """Say where the token goes, from hop to hop."""
    ranks = [rank for rank, t in journey.copies if t == token]
    start = f"From rank {journey.home[token]} it is sent to"
    if hops == 1:
        return f"{start} {_listed(ranks)}; one sum comes back from each."
    by_via: dict[int, list[int]] = {}
    for rank in ranks:
        by_via.setdefault(journey.through(rank, token), []).append(rank)
    onward = ", and to ".join(f"{_listed([via])}, from there to {_listed(to)}" for via, to in by_via.items())
    return f"{start} {onward}; sums come back by the same way."


def _listed(ranks: list[int]) -> str:
    *first, last = map(str, ranks)
    return f"ranks {', '.join(first)} and {last}" if first else f"rank {last}"


# ---------------------------------------------------------------------------------------------------
# What stands where


def _left(rank: int) -> float:
    """Return the left edge of a rank's column."""
    node, place = divmod(rank, PER_NODE)
    return LEFT + node * (NODE + GAP) + 6 + place * (COLUMN + 7)


def _places(holders: list[tuple[int, int]], widest: float = 29) -> dict[tuple[int, int], float]:
    """Return the middle of each copy: side by side in the middle of the rank's column, in the order of tokens."""
    found = {}
    for rank in range(RANKS):
        tokens = sorted(t for r, t in holders if r == rank)
        pitch = min(widest, COLUMN / max(1, len(tokens)))
        for i, t in enumerate(tokens):
            found[rank, t] = _left(rank) + COLUMN / 2 + (i - (len(tokens) - 1) / 2) * pitch
    return found


def _places_of_rows(journey: Journey) -> dict[tuple[int, int], tuple[float, float]]:
    """Return the middle of each row, by expert and token: at most four in a line."""
    found = {}
    for expert in range(EXPERTS):
        tokens = [t for t, chosen in enumerate(journey.choices) if expert in chosen]
        for i, t in enumerate(tokens):
            line, lines = i // 4, (len(tokens) + 3) // 4
            of_line = min(4, len(tokens) - 4 * line)
            x = _expert_left(expert) + 30 + (i - 4 * line - (of_line - 1) / 2) * SIDE
            found[expert, t] = x, ROWS + (15 if lines > 1 else 6) - 18.5 * line
    return found


def _expert_left(expert: int) -> float:
    rank, place = divmod(expert, EXPERTS // RANKS)
    return _left(rank) + place * 62


# ---------------------------------------------------------------------------------------------------
# Drawing


def _ground(d: Diagram, journey: Journey, hops: int, token: int) -> None:
    """Draw nodes, ranks and the names of the stages."""
    for node in range(RANKS // PER_NODE):
        x = LEFT + node * (NODE + GAP)
        d.panel(x, 30, NODE, HEIGHT - 94, "")
        d.text(x + NODE / 2, HEIGHT - 79, f"node {node}", ha="center", weight="bold")
        d.ax.plot([x + NODE / 2] * 2, [36, HEIGHT - 88], color=LINE, linewidth=1, linestyle=(0, (2, 3)), zorder=1.5)
    for rank in range(RANKS):
        d.text(_left(rank) + COLUMN / 2, HEIGHT - 79, f"rank {rank}", ha="center",
               weight="bold" if rank == journey.home[token] else "normal")  # fmt: skip
    names = {TOKENS - 6: "tokens and\ntheir experts", COPIES: "copies, one\nfor a rank",
             ROWS: "rows, sorted\nby expert", SUMS: "sums of ranks", RESULTS: "sums"}  # fmt: skip
    if hops == 2:
        names |= {VIA: "copies, one\nfor a node", VIA_SUMS: "sums of nodes"}
    for y, name in names.items():
        d.text(14, y, name, va="center", linespacing=1.2)
    ways = {(TOKENS + COPIES) / 2 - 6: "dispatch", (SUMS + RESULTS) / 2: "combine"}
    if hops == 2:
        ways = {(TOKENS + VIA) / 2 - 6: "dispatch, 1", (VIA + COPIES) / 2: "dispatch, 2",
                (SUMS + VIA_SUMS) / 2: "combine, 2", (VIA_SUMS + RESULTS) / 2: "combine, 1"}  # fmt: skip
    for y, name in ways.items():
        d.text(14, y, name, va="center", weight="bold")


def _key(d: Diagram, rows_HPP: np.ndarray) -> None:
    """Write how many copies go over which links."""
    across, inside = rows_between_nodes(rows_HPP, PER_NODE), rows_inside_nodes(rows_HPP, PER_NODE)
    numbers = dict(zip(LINKS, (across, inside, int(rows_HPP.sum()) - across - inside), strict=True))
    x = LEFT
    d.text(14, HEIGHT - 50, "copies sent", color=MUTED)
    for name, number in numbers.items():
        d.ax.plot([x, x + 18], [HEIGHT - 46] * 2, color=LINKS[name], linewidth=4, solid_capstyle="butt")
        said = f"{number} {name}"
        d.text(x + 24, HEIGHT - 50, said)
        x += 40 + 6.1 * len(said)
    d.ax.add_artist(Rectangle((x, HEIGHT - 49), 15, 6, facecolor=PARTS["router"], edgecolor=MUTED, linewidth=0.6))
    d.text(x + 21, HEIGHT - 50, "weights g")


def _look(lit: bool, ink: str = INK) -> dict:
    return {"color": ink, "weight": "bold"} if lit else {"color": MUTED}


def _square(d: Diagram, x: float, y: float, token: int, parts: int, lit: bool) -> None:
    """Draw a copy of a token, with so many weights below it."""
    half = SIDE / 2 - 0.5
    face, yellow = (INK, PARTS["router"]) if lit else (GROUND, tint(PARTS["router"], 0.5))
    d.square(x - half, y - half, 2 * half, face)
    d.text(x, y, ascii_lowercase[token], ha="center", va="center_baseline", **_look(lit, PAPER))
    for k in range(parts if lit else 1):  # pale ones are not told apart
        wide, edge = 2 * half / (parts if lit else 1), {"edgecolor": MUTED if lit else "none", "linewidth": 0.6}
        corner = x - half + k * wide, y - half - 4.5
        d.ax.add_artist(Rectangle(corner, wide, 4, facecolor=yellow, zorder=3, **edge))


def _circle(d: Diagram, x: float, y: float, token: int, lit: bool) -> None:
    """Draw a sum of outputs."""
    d.ax.add_artist(Circle((x, y), SIDE / 2, facecolor=INK if lit else GROUND, edgecolor="none", zorder=3))
    d.text(x, y, ascii_lowercase[token], ha="center", va="center_baseline", **_look(lit, PAPER))


def _rows(d: Diagram, journey: Journey, token: int) -> None:
    """Draw the experts with their rows, and the short ways from the copies to them and to the sums."""
    for expert in range(EXPERTS):
        lit, x = expert in journey.choices[token], _expert_left(expert)
        ground = tint(PARTS["routed"], 0.4 if lit else 0.13)
        d.ax.add_artist(
            Rectangle((x, ROWS + BOX[0]), 60, BOX[1] - BOX[0], facecolor=ground, edgecolor="none", zorder=1.2)
        )
        d.text(x + 30, ROWS - 20.5, f"expert {expert}", ha="center", va="center", color=INK,
               weight="bold" if lit else "normal")  # fmt: skip
    copies, own = _places(journey.copies), EXPERTS // RANKS
    for (expert, t), (x, y) in _places_of_rows(journey).items():
        _square(d, x, y, t, 1, t == token)
        middle = copies[expert // own, t]
        for start, end in (((middle, COPIES - 13), (x, y + 8)), ((x, ROWS + BOX[0]), (middle, SUMS + 8.5))):
            d.line(start, end, lit=t == token, arrow=False, width=2.6 if t == token else 0.9)


def _ways(d: Diagram, journey: Journey, hops: int, token: int) -> None:
    """Draw the ways of the copies from rank to rank, and those of the sums."""
    home, via, copies = _places(journey.tokens, HOME), _places(journey.via), _places(journey.copies)
    # Where a way starts and ends, and the heights of both there and back.
    outer, inner = (TOKENS - 31, RESULTS + 9), (COPIES + 9, SUMS - 9)
    ways = [(home, (journey.home[t], t), outer, copies, (rank, t), inner) for rank, t in journey.copies]
    if hops == 2:
        ways = [(home, (journey.home[t], t), outer, via, (rank, t), (VIA + 9, VIA_SUMS - 9)) for rank, t in journey.via]
        ways += [
            (via, (journey.through(rank, t), t), (VIA - 13, VIA_SUMS + 9), copies, (rank, t), inner)
            for rank, t in journey.copies
        ]
    for places, one, (leave, arrive), others, other, (there, back) in ways:
        color, lit = LINKS[link(one[0], other[0])], one[1] == token
        _curve(d, (places[one], leave), (others[other], there), color, lit)
        _curve(d, (others[other], back), (places[one], arrive), color, lit)


def _curve(d: Diagram, start: tuple[float, float], end: tuple[float, float], color: str, lit: bool) -> None:
    """Draw a way downwards, with an arrowhead at its end."""
    color, order, half = (color, 2.6, 3.6) if lit else (tint(color, 0.4), 2, 2.2)
    (x, y), bend = end, (start[1] + end[1]) / 2
    path = Path([start, (start[0], bend), (x, bend), (x, y + 4)], [Path.MOVETO] + 3 * [Path.CURVE4])
    d.ax.add_artist(PathPatch(path, facecolor="none", edgecolor=color, linewidth=2.6 if lit else 0.9, zorder=order))
    corners = [(x - half, y + 2 * half), (x, y), (x + half, y + 2 * half)]
    d.ax.add_artist(Polygon(corners, facecolor=color, edgecolor="none", zorder=order))
