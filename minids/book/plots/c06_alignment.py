"""The alignment staircase: which state, which embedding and which target belong together at each depth (chapter 6)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.patches import Rectangle

from minids.book.plots.diagram import FAINT, LINE, Diagram
from minids.book.plots.helpers import DASHED
from minids.book.plots.style import INK, MUTED, PAPER, PARTS, Picture, styled, tint
from minids.book.plots.tokens import spoken, visible
from minids.book.toy import WORDS
from minids.validation import require_whole

LEFT, RIGHT, BOTTOM = 110, 644, 56  # points: where the columns begin and end, and the lowest row
ROW, SPINE, STATE, HIGH = 96, 16, 30, 20  # points: from row to row; a column's middle of states, their width, a box
BAR, TOP = 29, 55  # points above a row's embeddings: the transformer, and the states and targets
CHARACTER, LOOK = 6.3, {"size": 10, "va": "center_baseline", "parse_math": False}  # in a chip: its width in points


@styled()
def draw_mtp_alignment(tokens: Sequence[str] = (*WORDS, "."), depth: int = 1, position: int = 2) -> Picture:
    """Draw what the main model and `depth` MTP modules read and predict in training, at one position in full colour.

    Columns are positions i, from 0. The row of module k has a column for each i whose target, token i + k + 1, exists.
    Raises ValueError for a depth that is not 1 or 2, too few or too many tokens, and a position that has no target.
    """
    require_whole("depth", depth, at_most=2)
    require_whole("len(tokens)", len(tokens), at_least=depth + 2, at_most=8)
    require_whole("position", position, at_least=0, at_most=len(tokens) - 2)
    rows = _Rows(tokens, depth, position)
    for k in range(depth + 1):
        rows.draw(k)
    d, last = rows.d, min(depth, len(tokens) - 2 - position)
    finding = "Module k reads token i + k and predicts token i + k + 1, which it has not read"
    d.text(14, d.height - 24, finding, size=14)
    note = f"Bold: the predictions at position {position}. Coloured: what they depend on. Grey: what they do not."
    d.text(14, d.height - 43, note, color=MUTED)
    for i in range(len(tokens) - 1):
        how = {"color": INK, "weight": "bold"} if i == position else {"color": MUTED}
        d.text(rows.left(i) + SPINE, 34, f"i = {i}", ha="center", **how)
    _key(d)
    steps = [f"the main model has read {rows.name(position)} and predicts {rows.name(position + 1)}"]
    for k in range(1, last + 1):
        pair = f"{rows.name(position + k)} and predicts {rows.name(position + k + 1)}"
        steps.append(f"module {k} joins state {k - 1} with {pair}")
    steps += [f"module {last + 1} has no target here"] if last < depth else []
    d.figure.alt = f"{finding}. At position {position} of {len(tokens) - 1}: {'; '.join(steps)}"
    return d.figure


def _key(d: Diagram) -> None:
    """Say which boxes are which, and what all rows share."""
    for x, face, edge, text in (
        (14, PARTS["embedding"], "none", "embedding of a token: one table for all rows"),
        (304, PAPER, INK, "target, predicted through one output head for all rows"),
    ):
        d.ax.add_artist(Rectangle((x, 9), 14, 11, facecolor=face, edgecolor=edge, linewidth=1, zorder=3))
        d.text(x + 20, 10, text, color=MUTED)


class _Rows:
    """The layout: the main model at the bottom, modules above, a column for each position."""

    def __init__(self, tokens: Sequence[str], depth: int, position: int):
        self.tokens, self.position = [visible(token) for token in tokens], position
        self.spoken = [spoken(token) for token in tokens]
        self.d = Diagram(height=BOTTOM + ROW * depth + TOP + HIGH + 66)
        self.pitch = (RIGHT - LEFT) / (len(tokens) - 1)

    def left(self, i: int) -> float:
        return LEFT + self.pitch * i

    def name(self, j: int) -> str:
        return f"“{self.spoken[j]}” ({j})"

    def draw(self, k: int) -> None:
        """Draw the row of depth k: names, the transformer over all positions, and a cell for each."""
        d, y, columns = self.d, BOTTOM + ROW * k, len(self.tokens) - 1
        part = "main model" if k == 0 else f"module {k}"
        sums = [f"i + {k + n}" if k + n else "i" for n in (0, 1)]
        for text, above, how in (
            (part, BAR + 8, {"weight": "bold", "size": 12}), (f"reads {sums[0]}", HIGH / 2, {}),
            (f"predicts {sums[1]}", TOP + HIGH / 2, {}),
        ):  # fmt: skip
            d.text(14, y + above, text, va="center", **how)
        color, exist = PARTS["mtp"] if k else MUTED, columns - k
        known = self.position + 1 if self.position < exist else 0  # columns that the lit prediction depends on
        whole = self.left(exist) - 6
        for end, face in ((whole, FAINT), (min(self.left(known), whole), tint(color, 0.6))):
            d.ax.add_artist(Rectangle((LEFT, y + BAR), end - LEFT, 17, facecolor=face, zorder=3))
        span = f"T − {k}" if k else "T"
        what = f"{'one block' if k else 'all blocks'}, causal, over {span} = {exist} positions"
        d.text(LEFT + 8, y + BAR + 8, what, va="center", size=10)
        for i in range(exist):
            self._cell(k, i, y, i < known)
        for i in range(exist, columns):
            self._gap(k, i, y)

    def _cell(self, k: int, i: int, y: float, known: bool) -> None:
        """Draw what position i reads at depth k, its state and its target."""
        d, x, lit = self.d, self.left(i), i == self.position
        spine, chip, width = x + SPINE, x + STATE + 10, self.pitch - STATE - 15
        color, line = PARTS["mtp"] if k else MUTED, {"lit": lit, "width": 2 if lit else 1.2}
        d.box(x + 1, y + TOP, STATE, HIGH, f"$h^{k}_{i}$", color=tint(color, 1 if lit else 0.4), lit=known, size=13)
        d.line((spine, y + BAR + 17), (spine, y + TOP), **line)
        below = TOP + HIGH - ROW if k else HIGH / 2  # the state of depth k - 1; the main model has embeddings only
        d.line((spine, y + below), (spine, y + BAR), **line)
        d.line((chip, y + HIGH / 2), (spine, y + HIGH / 2), arrow=k > 0, **line)
        d.line((x + STATE + 1, y + TOP + HIGH / 2), (chip, y + TOP + HIGH / 2), **line)
        read = tint(PARTS["embedding"], 1 if lit else 0.5) if known else FAINT
        self._chip(chip, y, width, i + k, read, "none", known)
        self._chip(chip, y + TOP, width, i + k + 1, PAPER, INK if lit else LINE, lit)

    def _chip(self, x: float, y: float, width: float, j: int, face: str, edge: str, lit: bool) -> None:
        """Draw a token with its place in the text."""
        word, longest, color = self.tokens[j], int((width - 12) / CHARACTER), INK if lit else MUTED
        word = word if len(word) <= longest else word[: longest - 1] + "…"
        self.d.ax.add_artist(Rectangle((x, y), width, HIGH, facecolor=face, edgecolor=edge, linewidth=1, zorder=3))
        self.d.text(x + (width - 9) / 2, y + 10, word, ha="center", color=color, **LOOK)
        self.d.text(x + width - 2, y + 10, f"{j}", ha="right", color=color, **LOOK)

    def _gap(self, k: int, i: int, y: float) -> None:
        """Draw the place of a prediction whose target is beyond the text."""
        x, height = self.left(i), TOP + HIGH
        color = INK if i == self.position else MUTED
        self.d.outline(x + 1, y, self.pitch - 7, height, edgecolor=color, linewidth=1, linestyle=DASHED)
        self.d.text(x + self.pitch / 2 - 3, y + height / 2, f"no\ntoken {i + k + 1}", ha="center", va="center",
                    color=color)  # fmt: skip
