"""Why a rotated key cannot be absorbed: the bracket that closes only where nothing depends on the distance."""

from __future__ import annotations

import numpy as np
from matplotlib.patches import Rectangle

from minids.book.plots.c03_sequence import COLORS
from minids.book.plots.diagram import Diagram, one_decimal
from minids.book.plots.style import INK, MUTED, PAPER, PARTS, Picture, readable_on, styled, tint
from minids.book.toy import TOYS, WORDS, toy_input, toy_layer, toy_rotation
from minids.validation import require

SMALL, NUMBER = 10, (26, 18)  # points: a box without, and one with a number
HEAD = 3  # whose numbers are shown: the last
ROTATION, UP = PARTS["rope"], tint(PARTS["latent"], 0.4)


@styled()
def draw_brackets(token: int = 4) -> Picture:
    """Draw the scores of one query of the toy with each word so far: left with rotated keys, right as in MLA.

    Left, each cached token needs another absorbed query, because the rotation between query and W^UK depends on the
    distance. Right, one serves all. Raises ValueError for a token of WORDS before the second, or beyond them.
    """
    require("token", token, isinstance(token, int) and 2 <= token <= len(WORDS), f"2 to {len(WORDS)}")
    q, w_uk, folded = _numbers(token)
    pitch = 28
    d = Diagram(height=132 + pitch * len(WORDS))  # the same for all tokens: nothing jumps
    top = d.height - 92
    d.text(14, d.height - 24, f"Rotated keys need {token} absorbed queries for {token} words, MLA needs one", size=14)
    d.text(14, d.height - 52, "Blocked: a rotation in the bracket", size=12, weight="bold")
    d.text(346, d.height - 52, "Open: position has its own key", size=12, weight="bold")
    d.text(14, d.height - 72, "$((W^{UK})^\\top R_{t-j}\\,q)\\cdot c_j$", size=12)
    d.text(346, d.height - 72, "$((W^{UK})^\\top q_{nope})\\cdot c_j\\; +\\; q_{rope}\\cdot k_{rope,\\,j}$", size=12)
    for row, word in enumerate(WORDS):
        y, there = top - pitch * row - 24, row < token
        d.text(52, y + 9, word, size=11, ha="right", va="center", color=INK if there else MUTED,
               weight="bold" if row == token - 1 else "normal")  # fmt: skip
        if not there:
            continue
        distance = token - 1 - row
        x = _boxes(d, 62, y + 4, 1, 2, COLORS["q"]) + 7
        x = _boxes(d, x, y - 1, 2, 2, ROTATION) + 7
        x = _boxes(d, x, y - 1, 2, 3, UP) + 8
        d.text(x + 2, y + 9, "=", size=11, va="center")
        x = _row(d, x + 16, y, folded[distance]) + 10
        x = _boxes(d, x, y + 4, 1, 3, COLORS["c_kv"]) + 8
        d.text(x, y + 9, f"{distance} apart", size=10, va="center", color=MUTED)
    for x, name in ((72, "q"), (99, "R"), (131, "$W^{UK}$"), (201, "absorbed query"), (274, "$c_j$")):
        d.text(x, top - 1, name, size=10, ha="center", color=MUTED)
    _open(d, token, top, pitch, q @ w_uk)
    d.text(14, 14, f"{token} queries: as much work as expanding {token} keys", size=11)
    d.text(346, 14, "one query for all, and two numbers more a token", size=11)
    d.figure.alt = (
        f"The query of word {token} of “{' '.join(WORDS)}”, head {HEAD + 1}. With rotated keys its absorbed form is "
        + "; ".join(f"{_say(folded[n])} for {n} apart" for n in range(token))
        + f". Without, it is {_say(q @ w_uk)} for all"
    )
    return d.figure


def _numbers(token: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return q_nope and W^UK of head HEAD, and the absorbed query for each distance, all as rows."""
    config, layer = TOYS["MLA"], toy_layer("MLA")
    q_nope, _ = layer.queries(toy_input()[None, :token], toy_rotation(token))
    up = layer.kv_b_proj.weight.unflatten(0, (config.num_attention_heads, -1))
    q, w_uk = q_nope[0, HEAD, -1].numpy(), up[HEAD, : config.qk_nope_head_dim].numpy()
    turns = [np.array([[np.cos(n), np.sin(n)], [-np.sin(n), np.cos(n)]]) for n in range(token)]
    return q, w_uk, [q @ turn @ w_uk for turn in turns]


def _open(d: Diagram, token: int, top: float, pitch: float, absorbed: np.ndarray) -> None:
    """Draw the right half: the product once, and a line from it to each cached latent."""
    middle = top - pitch * (token - 1) / 2 - 15
    x = _boxes(d, 346, middle - SMALL / 2, 1, 2, COLORS["q"]) + 7
    x = _boxes(d, x, middle - SMALL, 2, 3, UP) + 8
    d.text(x + 2, middle, "=", size=11, va="center")
    x = _row(d, x + 16, middle - NUMBER[1] / 2, absorbed)
    for row in range(token):
        y = top - pitch * row - 15
        d.line((x + 3, middle), (x + 34, y), arrow=False, width=1)
        end = _boxes(d, x + 38, y - SMALL / 2, 1, 3, COLORS["c_kv"]) + 9
        d.text(end + 2, y, "+", size=11, va="center", ha="center")
        end = _boxes(d, end + 12, y - SMALL / 2, 1, 2, COLORS["q_rope"])
        d.text(end + 6, y, "·", size=13, va="center", ha="center")
        _boxes(d, end + 12, y - SMALL / 2, 1, 2, COLORS["k_rope"])


def _boxes(d: Diagram, x: float, y: float, rows: int, columns: int, color: str) -> float:
    """Draw a matrix, a box for each of its numbers, and return its right edge."""
    for row in range(rows):
        for column in range(columns):
            d.ax.add_artist(
                Rectangle((x + SMALL * column, y + SMALL * row), SMALL, SMALL, facecolor=color, edgecolor=PAPER,
                          linewidth=0.7, zorder=3)
            )  # fmt: skip
    return x + SMALL * columns


def _row(d: Diagram, x: float, y: float, numbers: np.ndarray) -> float:
    """Draw a vector with its numbers, and return its right edge."""
    color = COLORS["absorbed"]
    for number in numbers:
        d.ax.add_artist(Rectangle((x, y), *NUMBER, facecolor=color, edgecolor=PAPER, linewidth=0.7, zorder=3))
        d.text(x + NUMBER[0] / 2, y + NUMBER[1] / 2 - 0.5, one_decimal(number), size=10, ha="center", va="center",
               color=readable_on(color))  # fmt: skip
        x += NUMBER[0]
    return x


def _say(numbers: np.ndarray) -> str:
    return " ".join(one_decimal(number) for number in numbers)
