"""From one feed-forward layer to experts: the split, and the route of each token.

A box is one number. The numbers are those of the toy layer (minids/book/toy.py), read from the library's own modules.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from matplotlib.patches import Polygon, Rectangle
from torch import Tensor, nn

from minids.book.plots.diagram import FAINT, LINE, Diagram, one_decimal, say, two_decimals
from minids.book.plots.style import INK, MUTED, PALE, PAPER, PARTS, Picture, styled, tint
from minids.book.toy import WORDS, toy_input, toy_moe
from minids.model.layers import SwiGLU
from minids.model.moe import Experts
from minids.validation import require_whole

ROUTER, ROUTED, SHARED, DENSE = (PARTS[name] for name in ("router", "routed", "shared", "dense"))
V2 = {"scoring_func": "softmax", "norm_topk_prob": False, "topk_method": "greedy"}  # the toy with V2's gate


def outputs_of_experts(experts: Experts, x: Tensor) -> Tensor:
    """Return the output of every expert for one token, (E, D), without the weights g."""
    n = len(experts.down_proj)
    return experts(x.expand(n, -1), torch.ones(n), torch.ones(n, dtype=torch.int64))


def joined(experts: Experts) -> SwiGLU:
    """Return the dense layer whose hidden units are those of all experts, in their order."""
    n, hidden, width = experts.down_proj.shape
    dense = SwiGLU(hidden, n * width).requires_grad_(False)
    gate, up = experts.gate_up_proj.chunk(2, dim=1)
    dense.gate_proj.weight.copy_(gate.flatten(0, 1))
    dense.up_proj.weight.copy_(up.flatten(0, 1))
    dense.down_proj.weight.copy_(experts.down_proj.transpose(0, 1).flatten(1))
    return dense


# ---------------------------------------------------------------------------------------------------
# One feed-forward layer becomes several


UNIT, APART = 9, 6  # points: a hidden unit, and between two slices
NUMBER = (23.4, 18)  # a box with one decimal
PANEL = (150, 250)


@styled()
def draw_split(token: int = 4) -> Picture:
    """Draw one token of the toy in four layers: dense, cut into slices, routed, and with a shared expert.

    The dense layer's hidden units are those of the four routed experts together. Multiplications are those by weights.
    Raises ValueError for a token that is not one of WORDS, counted from 1.
    """
    require_whole("token", token, at_most=len(WORDS))
    x, layer, routed = toy_input()[token - 1], toy_moe(), toy_moe(n_shared_experts=None)
    dense, slices = joined(layer.experts), outputs_of_experts(layer.experts, x)
    weights, chosen, _ = (row[0].tolist() for row in layer.gate(x[None]))
    g = dict(zip(chosen, weights, strict=True))
    n, width = len(slices), layer.experts.down_proj.shape[2]
    whole, one = size(dense), size(layer.experts) // n
    cost = {"router": size(layer.gate), "routed": len(g) * one, "shared": size(layer.shared_experts)}
    used = [{"dense": whole}, {"dense": whole}, {k: cost[k] for k in ("router", "routed")}, cost]
    held = [whole, size(layer.experts), size(routed), size(layer)]
    outs = [dense(x), slices.sum(dim=0), routed(x[None, None])[0][0, 0], layer(x[None, None])[0][0, 0]]
    titles = ("Dense", f"Cut into {n}", f"{len(g)} of {n} routed", "Shared + routed")
    below = (f"{n * width} hidden units", f"the sum of {n} slices", "each times its g", "one always computed")
    d = Diagram(height=384)
    finding = f"A token computes {len(g)} of {n} slices: {cost['routed']} of {whole} multiplications"
    d.text(14, d.height - 24, f"{finding}, and {cost['router']} to choose them", size=14)
    for i, (title, text) in enumerate(zip(titles, below, strict=True)):
        left, bottom = 14 + i * (PANEL[0] + 20 / 3), d.height - 46 - PANEL[1]
        d.panel(left, bottom, *PANEL, title)
        d.text(left + 10, bottom + PANEL[1] - 32, text, color=MUTED)
        panel = _Layer(d, left, bottom, width)
        panel.numbers(x.tolist(), outs[i].tolist(), WORDS[token - 1])
        if i == 0:
            panel.whole(n)
        else:
            panel.slices(n, None if i == 1 else g)
        if i == 3:
            panel.shared(n)
        _cost(d, left, bottom, held[i], used[i], PANEL[0] / max(held))
    d.plus(14 + PANEL[0] + 10 / 3, bottom + 193, sign="=")
    names = ("dense", "in slices", "routed", "routed and shared")
    d.figure.alt = f"“{WORDS[token - 1]}”, token {token}. " + "; ".join(
        f"{name}: {count} parameters, {sum(use.values())} multiplications, output {say(out.tolist())}"
        for name, count, use, out in zip(names, held, used, outs, strict=True)
    )
    return d.figure


def size(module: nn.Module) -> int:
    """Return the number of a module's parameters; each used one is one multiplication per token."""
    return sum(weight.numel() for weight in module.parameters())


def _cost(d: Diagram, x: float, bottom: float, held: int, used: dict[str, int], scale: float) -> None:
    """Draw below a panel its parameters as a bar, filled as far as one token uses them, and both numbers."""
    y, end = bottom - 24, x
    for part, count in used.items():
        d.ax.add_artist(Rectangle((end, y), scale * count, 12, facecolor=PARTS[part], edgecolor="none", zorder=3))
        end += scale * count
    d.outline(x, y, scale * held, 12, linewidth=1)
    d.text(x, y - 18, f"{held} parameters", size=12)
    d.text(x, y - 35, f"{sum(used.values())} multiplications", size=12)
    last = f"{used['router']} of each: the router" if "router" in used else "filled: used for a token"
    d.text(x, y - 51, last, color=MUTED)


class _Layer:
    """A layer at a place of the page: x below, the hidden units in the middle, the output above."""

    def __init__(self, d: Diagram, left: float, bottom: float, width: int):
        self.d, self.left, self.bottom, self.width = d, left, bottom, width
        self.start = left + (PANEL[0] - 6 * NUMBER[0]) / 2
        self.y_in, self.y_units, self.y_out = bottom + 24, bottom + 92, bottom + 184

    def numbers(self, x: list[float], out: list[float], word: str) -> None:
        for y, values in ((self.y_in, x), (self.y_out, out)):
            self.d.boxes(self.start, y, values, NUMBER, show=one_decimal, edge=LINE)
        self.d.text(self.left + PANEL[0] / 2, self.bottom + 9, f"h of “{word}”", size=10, ha="center", color=MUTED)

    def whole(self, n: int) -> None:
        """Draw all units evenly, as one layer."""
        first, last = self._place(0, n), self._place(n - 1, n) + (self.width - 1) * UNIT
        count = n * self.width
        self._units([first + (last - first) * i / (count - 1) for i in range(count)], DENSE)

    def slices(self, n: int, g: dict[int, float] | None) -> None:
        """Draw the units in slices; with weights g, only the slices that have one are computed."""
        for i in range(n):
            x = self._place(i, n)
            color = DENSE if g is None else ROUTED if i in g else None
            self._units([x + j * UNIT for j in range(self.width)], color, lifted=g is not None)
            if g and i in g:
                middle = x + self.width * UNIT / 2
                self.d.boxes(middle - 11.5, self.y_units + 16, [g[i]], (23, 15), ROUTER, show=two_decimals)

    def shared(self, n: int) -> None:
        """Draw the shared expert's units to the left of n slices."""
        x = self._place(-1, n)
        self._units([x + j * UNIT for j in range(self.width)], SHARED, lifted=True)

    def _place(self, slice_: int, n: int) -> float:
        """Return the left edge of a slice; all n stand in the middle of the panel."""
        pitch = self.width * UNIT + APART
        return self.left + (PANEL[0] - n * pitch + APART) / 2 + slice_ * pitch

    def _units(self, places: list[float], color: str | None, lifted: bool = False) -> None:
        """Draw hidden units, their frame, and the two matrices; without a color they are not computed."""
        top = self.y_units + (32 if lifted and color == ROUTED else 15)
        start, end = places[0], places[-1] + UNIT
        for low, high in ((self.y_in + NUMBER[1] + 1, self.y_units - 3), (self.y_out - 1, top)):
            corners = [(self.start, low), (start, high), (end, high), (self.start + 6 * NUMBER[0], low)]
            if color:
                self.d.ax.add_artist(Polygon(corners, facecolor=color, alpha=0.14, edgecolor="none", zorder=2))
            edge = {"edgecolor": color or PALE, "linewidth": 0.9, "zorder": 2.1 if color else 1.5}
            self.d.ax.add_artist(Polygon(corners, facecolor="none", **edge))
        for x in places:
            self.d.boxes(x, self.y_units, [0], (UNIT, 12), color or FAINT, edge=PAPER if color else LINE)
        self.d.outline(places[0] - 1.5, self.y_units - 1.5, places[-1] + UNIT - places[0] + 3, 15,
                edgecolor=INK if color else LINE, linewidth=1.2)  # fmt: skip


# ---------------------------------------------------------------------------------------------------
# The route of each token


@dataclass(frozen=True)
class Routed:
    """What the toy layer computes for all six words, and for one of them in full."""

    weights: list[list[float]]  # g of the chosen experts
    chosen: list[list[int]]
    scores: list[list[float]]
    outs: list[list[float]]  # of the chosen experts, for the one token
    shared: list[float]
    out: list[float]

    @classmethod
    def of(cls, token: int) -> Routed:
        x, layer = toy_input(), toy_moe()
        weights, chosen, scores = layer.gate(x)
        outs = outputs_of_experts(layer.experts, x[token - 1])[chosen[token - 1]]
        out = layer(x[None])[0][0, token - 1]
        shared = layer.shared_experts(x[token - 1])
        return cls(*(part.tolist() for part in (weights, chosen, scores, outs, shared, out)))


X, SCORE, OUT = (25, 18), (24.8, 18), (30, 18)  # boxes


@styled()
def draw_routing(token: int = 4) -> Picture:
    """Draw the scores, choices and weights of all six words of the toy, and how one token's output is computed.

    Raises ValueError for a token that is not one of WORDS, counted from 1.
    """
    require_whole("token", token, at_most=len(WORDS))
    route, x = Routed.of(token), toy_input().tolist()
    n, chosen, g = len(route.scores[0]), route.chosen[token - 1], route.weights[token - 1]
    word, s = WORDS[token - 1], [route.scores[token - 1][i] for i in chosen]
    d = Diagram(height=298)
    experts, ss, gs = (" and ".join(items) for items in (map(str, chosen), map(two_decimals, s), map(two_decimals, g)))
    d.text(14, d.height - 24, f"“{word}” goes to experts {experts}: scores {ss}, weights {gs}", size=14)
    top, pitch, left = d.height - 82, 32, 40
    at_scores = left + 6 * X[0] + 14
    at_weights = at_scores + n * SCORE[0] + 14
    end = at_weights + n * SCORE[0]
    for at, name, width in (
        (left, "h", 6 * X[0]),
        (at_scores, "scores s", n * SCORE[0]),
        (at_weights, "weights g", n * SCORE[0]),
    ):
        d.text(at + width / 2, top + 20, name, size=12, ha="center")
    for at in (at_scores, at_weights):
        for i in range(n):
            d.text(at + (i + 0.5) * SCORE[0], top + 4, str(i), size=10, ha="center", color=MUTED)
    for row, name in enumerate(WORDS):
        y, here = top - pitch * row - 22, row == token - 1
        ink = INK if here else MUTED
        d.text(left - 7, y + 9, name, size=11, ha="right", va="center", weight="bold" if here else "normal", color=ink)
        d.boxes(left, y, x[row], X, show=one_decimal, edge=INK if here else LINE, ink=ink)
        by_expert = dict(zip(route.chosen[row], route.weights[row], strict=True))
        color = ROUTER if here else tint(ROUTER, 0.35)
        for i, score in enumerate(route.scores[row]):
            at = at_scores + i * SCORE[0]
            d.boxes(at, y, [score], SCORE, color if i in by_expert else PAPER, show=two_decimals,
                  edge=PAPER if i in by_expert else PALE, ink=ink if i in by_expert else MUTED)  # fmt: skip
        for i in by_expert:
            d.outline(at_scores + i * SCORE[0], y, *SCORE, edgecolor=ink, linewidth=1.5 if here else 0.9)
        for i in range(n):
            d.boxes(at_weights + i * SCORE[0], y, [by_expert.get(i)], SCORE, color, show=two_decimals, ink=ink)
    _output(d, route, token, (end, top - pitch * (token - 1) - 13), top + 34)
    d.text(left, 12, f"chosen: the {len(chosen)} highest scores; g = s / (sum of the chosen s)", color=MUTED)
    d.figure.alt = (
        f"Token {token} of “{' '.join(WORDS)}”: scores {' '.join(map(two_decimals, route.scores[token - 1]))}; "
        f"experts {experts}, weights {gs}; output "
        + " + ".join(f"{two_decimals(w)} · ({say(out, two_decimals)})" for w, out in zip(g, route.outs, strict=True))
        + f" + shared ({say(route.shared, two_decimals)}) = {say(route.out, two_decimals)}"
    )
    return d.figure


def _output(d: Diagram, route: Routed, token: int, start: tuple[float, float], top: float) -> None:
    """Draw the sum that is a token's output, opened from the end of its row."""
    left, width, height = start[0] + 16, 6 * OUT[0] + 20, 222
    d.wedge([(start[0] + 3, start[1] - 9), (start[0] + 3, start[1] + 9), (left, top - 8), (left, top - height + 8)])
    d.panel(left, top - height, width, height, f"Output for “{WORDS[token - 1]}”")
    at, y = left + 10, top - 66
    terms = zip(route.chosen[token - 1], route.weights[token - 1], route.outs, strict=True)
    for term, (i, weight, out) in enumerate(terms):
        d.text(at, y + 24, "+" if term else "")
        d.boxes(at + 13, y + 20, [weight], (SCORE[0], 15), ROUTER, show=two_decimals)
        d.text(at + SCORE[0] + 18, y + 24, f"× expert {i}")
        d.boxes(at, y, out, OUT, ROUTED, show=two_decimals)
        y -= 48
    d.text(at, y + 24, "+ shared expert")
    d.boxes(at, y, route.shared, OUT, SHARED, show=two_decimals)
    y -= 48
    d.line((at, y + 38), (at + 6 * OUT[0], y + 38), arrow=False, width=1)
    d.text(at, y + 24, "= output")
    d.boxes(at, y, route.out, OUT, show=two_decimals, edge=INK)


# ---------------------------------------------------------------------------------------------------
# Two kinds of gates
