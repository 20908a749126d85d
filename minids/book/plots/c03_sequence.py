"""One decoding step in five kinds of attention, number by number: what is cached, read and computed.

A box is one number, a row of boxes what one token has. The numbers are those of the toy layers (minids/book/toy.py),
read from the library's own caches.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.patches import Rectangle
from torch import Tensor

from minids.book.plots.diagram import Diagram, one_decimal
from minids.book.plots.style import (
    INK,
    MUTED,
    PALE,
    PAPER,
    PARTS,
    PT_PER_INCH,
    WIDTH,
    Picture,
    readable_on,
    styled,
    tint,
)  # fmt: skip
from minids.book.toy import KINDS, WORDS, Step, step_of

PAGE = WIDTH * PT_PER_INCH


COLORS = {
    "q": PARTS["attention"], "k": PARTS["attention"], "v": tint(PARTS["attention"], 0.45),
    "q_nope": PARTS["attention"], "absorbed": PARTS["attention"], "q_rope": PARTS["rope"],
    "c_kv": PARTS["latent"], "k_rope": PARTS["rope"],
    "k_nope": tint(PARTS["latent"], 0.4), "v_made": tint(PARTS["latent"], 0.2),
}  # fmt: skip
SHOWN = {"absorbed": "q_nope $W^{UK}$", "v_made": "v"}  # where a part is not shown as it is called


@styled()
def draw_step(kind: str = "MLA, absorbed", token: int = 4) -> Picture:
    """Draw one decoding step with every number: above the query, below what it reads, a row for each token.

    Raises ValueError for another kind than KINDS, and for a token that is not one of WORDS, counted from 1.
    """
    step = step_of(kind, token)
    d = Diagram(height=300)
    _Panel(d, step, token, left=62, top=196, box=(24.4, 19), rows=21, numbers=True).draw()
    d.text(14, 276, _finding(step), size=14)
    d.text(14, 36, f"cached: {step.per_token} numbers a token, {step.per_token * token} in all", size=12)
    d.text(14, 14, f"added in this step: {step.per_token}, read: {step.per_token * token}", size=12)
    made = "nothing is expanded" if "c_kv" in step.cached else "keys and values are cached whole"
    if step.made:
        made = f"made in this step and not kept: {step.made * token}"
    d.text(330, 36, made, size=12)
    d.text(330, 14, f"multiplications from queries to heads’ outputs: {step.multiplications}", size=12)
    d.figure.alt = f"Token {token} of “{' '.join(WORDS)}” with {kind}: {_counts(step, token)}"
    return d.figure


@styled()
def draw_kinds(kinds: Sequence[str] = KINDS, token: int = 4) -> Picture:
    """Draw the same decoding step with several kinds of attention side by side, a box for each number.

    Raises ValueError for another kind or token, as `draw_step` does.
    """
    steps = [step_of(kind, token) for kind in kinds]
    lines = [kinds[:3], kinds[3:]] if len(kinds) > 3 else [kinds]
    pitch = 166
    d = Diagram(height=58 + pitch * len(lines))
    box = 9.4
    for row, line in enumerate(lines):
        panels = [_Panel(d, steps[kinds.index(kind)], token, 0, 0, (box, box), rows=12, numbers=False) for kind in line]
        free = PAGE - 62 - 14 - sum(panel.width for panel in panels)
        x, y = 62.0, pitch * (len(lines) - row) - 62
        for column, panel in enumerate(panels):
            panel.left, panel.top, panel.words = x, y, column == 0
            panel.draw()
            d.text(x, y + 40, panel.step.kind, size=12, weight="bold")
            d.text(x, y - 12 * len(WORDS) - 18, f"{panel.step.per_token} cached a token", size=11)
            x += panel.width + free / max(len(panels) - 1, 1)
    latents = [step.per_token for step in steps if "c_kv" in step.cached]
    few, many = min(step.per_token for step in steps), max(step.per_token for step in steps)
    finding = f"From {many} cached numbers a token to {few}: heads share keys and values"
    if latents:
        finding = f"With {latents[0]} cached numbers a token, MLA gives every head its own keys and values"
    d.text(14, d.height - 24, finding, size=14)
    key = {"q": "query, key", "v": "value"}
    if latents:
        key |= {"c_kv": "latent", "k_rope": "position", "k_nope": "key, made", "v_made": "value, made"}
    x = 62.0
    for name, meaning in key.items():
        d.square(x, d.height - 52, box, COLORS[name])
        d.text(x + 14, d.height - 52, meaning, size=11)
        x += 26 + 6.6 * len(meaning)
    said = "; ".join(f"{step.kind}: {_counts(step, token)}" for step in steps)
    d.figure.alt = f"Token {token} of “{' '.join(WORDS)}”. {said}"
    return d.figure


def _counts(step: Step, token: int) -> str:
    made = f", {step.made * token} made and not kept" if step.made else ""
    return (
        f"{step.per_token} numbers cached a token, {step.per_token * token} read{made}, "
        f"{step.multiplications} multiplications"
    )


def _finding(step: Step) -> str:
    if step.made:
        return f"{step.kind}: {step.per_token} numbers cached a token, and {step.made} made of them again at every step"
    if "c_kv" in step.cached:
        return f"{step.kind}: {step.per_token} numbers cached a token, read as they are by all four heads"
    groups = next(iter(step.cached.values())).shape[1]
    whose = {4: "keys and values of every head", 2: "two heads share keys and values", 1: "all heads share one"}[groups]
    return f"{step.kind}: {step.per_token} numbers cached a token: {whose}"


class _Panel:
    """A step at a place of the page: blocks of columns, one for each group, and the query heads above them."""

    def __init__(self, d: Diagram, step: Step, token: int, left: float, top: float, box: tuple[float, float],
                 rows: float, numbers: bool):  # fmt: skip
        self.d, self.step, self.token, self.left, self.top = d, step, token, left, top
        self.box, self.rows, self.numbers, self.words = box, rows, numbers, True
        self.gap = 0.32 * box[0]  # between blocks
        self.arrow = 46 if numbers else 22  # between what is cached and what is made of it

    @property
    def width(self) -> float:
        return max(self._blocks_width(), self._query_width())

    def draw(self) -> None:
        blocks = self._blocks(self.step.cached, self.left, cached=True)
        if self.step.made:
            start = self.left + self._width(self.step.cached)
            y = self.top - 0.5 * self.rows - self.rows * (self.token - 1) / 2
            self.d.line((start + 5, y), (start + self.arrow - 5, y))
            if self.numbers:
                self.d.text(start + self.arrow / 2, y + 6, "$W^{UK}$", size=10, ha="center")
                self.d.text(start + self.arrow / 2, y - 15, "$W^{UV}$", size=10, ha="center")
            blocks = self._blocks(self.step.expanded, start + self.arrow, cached=False)
        self._query(blocks)
        if self.words:
            for row, word in enumerate(WORDS):
                new = row == self.token - 1
                self.d.text(
                    self.left - 10, self._y(row) + self.box[1] / 2, word, size=11, ha="right", va="center",
                    weight="bold" if new else "normal", color=INK if row < self.token else MUTED,
                )  # fmt: skip

    def _y(self, row: int) -> float:
        return self.top - self.rows * (row + 1) + (self.rows - self.box[1]) / 2

    def _width(self, parts: dict[str, Tensor]) -> float:
        groups = next(iter(parts.values())).shape[1]
        return sum(part.shape[1] * part.shape[2] for part in parts.values()) * self.box[0] + (groups - 1) * self.gap

    def _blocks_width(self) -> float:
        made = self.arrow + self._width(self.step.expanded) if self.step.made else 0
        return self._width(self.step.cached) + made

    def _query_width(self) -> float:
        heads, numbers = (
            next(iter(self.step.query.values())).shape[0],
            sum(p.shape[1] for p in self.step.query.values()),
        )
        return heads * numbers * self.box[0] + (heads - 1) * self.gap

    def _blocks(self, parts: dict[str, Tensor], x: float, cached: bool) -> list[tuple[float, float]]:
        """Draw what every token has, group by group, and return where each group begins and ends."""
        groups, ends = next(iter(parts.values())).shape[1], []
        for group in range(groups):
            start = x
            for name, part in parts.items():
                width = part.shape[2]
                if self.numbers:
                    label = SHOWN.get(name, name)
                    self.d.text(x + width * self.box[0] / 2, self.top + 6, label, size=10, ha="center")
                for row in range(len(WORDS)):
                    values = part[row, group].tolist() if row < self.token else [None] * width
                    for column, value in enumerate(values):
                        self._box(x + column * self.box[0], self._y(row), name, value)
                x += width * self.box[0]
            ends.append((start, x))
            if cached:
                low, high = self._y(len(WORDS) - 1) - 2, self.top - (self.rows - self.box[1]) / 2 + 2
                self.d.ax.add_artist(
                    Rectangle((start - 2, low), x - start + 4, high - low, facecolor="none", edgecolor=INK,
                              linewidth=1.3, linestyle=(0, (3, 2)), zorder=4)
                )  # fmt: skip
            x += self.gap
        return ends

    def _query(self, blocks: list[tuple[float, float]]) -> None:
        """Draw the query heads: over the block that each reads, or, where they are wider than it, side by side."""
        query = self.step.query
        heads, each = next(iter(query.values())).shape[0], sum(part.shape[1] for part in query.values()) * self.box[0]
        low, y = self.top + (16 if self.numbers else 2), self.top + (36 if self.numbers else 22)
        sharing = heads // len(blocks)
        # Over their block, heads are half a gap apart, and then so are those of neighbouring blocks.
        fits = sharing * each <= max(end - start for start, end in blocks)
        gap = self.gap / 2 if fits and sharing > 1 else self.gap
        together = sharing * each + (sharing - 1) * gap
        if self.words and self.numbers:
            self.d.text(self.left - 10, y + self.box[1] / 2, "query", size=11, ha="right", va="center")
        for head in range(heads):
            (start, end), place = blocks[head // sharing], head % sharing
            x = ((start + end - together) / 2 if fits else start) + place * (each + gap)
            # The line ends over its share of the block: a head reads all of it.
            target = start + (end - start) * (place + 0.5) / sharing
            if not self.step.made:
                self.d.line((x + each / 2, y), (target, low), arrow=False, width=1)
            for name, part in query.items():
                width = part.shape[1] * self.box[0]
                for column, value in enumerate(part[head].tolist()):
                    self._box(x + column * self.box[0], y, name, value)
                if self.numbers:
                    self.d.text(x + width / 2, y + self.box[1] + 4, SHOWN.get(name, name), size=10, ha="center")
                if self.step.made and name == "q_rope":  # the other part of a key: cached, one for all heads
                    self._rope_bus(x + width / 2, y, low)
                elif self.step.made:
                    self.d.line((x + width / 2, y), (x + width / 2, low), arrow=False, width=1)
                x += width
        if not self.step.made:
            for start, end in blocks:
                self.d.line((start, low), (end, low), arrow=False, width=1)

    def _rope_bus(self, x: float, y: float, low: float) -> None:
        """Draw the line on which a head of the expanded form reads the one cached k_rope."""
        latent, rope = (part.shape[2] * self.box[0] for part in self.step.cached.values())
        column, bus, how = self.left + latent + rope / 2, (y + low) / 2 + 2, {"color": PARTS["rope"], "linewidth": 1}
        self.d.ax.plot([x, x, column, column], [y, bus, bus, low], zorder=1.9, solid_joinstyle="miter", **how)

    def _box(self, x: float, y: float, name: str, value: float | None) -> None:
        color = PAPER if value is None else COLORS[name]
        self.d.ax.add_artist(
            Rectangle((x, y), *self.box, facecolor=color, edgecolor=PALE if value is None else PAPER, linewidth=0.7,
                      zorder=2.5)
        )  # fmt: skip
        if self.numbers and value is not None:
            middle = x + self.box[0] / 2, y + self.box[1] / 2 - 0.5
            self.d.text(*middle, one_decimal(value), size=10, ha="center", va="center", color=readable_on(color))
