"""Text written with speculative decoding, every token coloured by where it comes from (chapter 6)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from minids.book.plots.diagram import LINE, Diagram
from minids.book.plots.style import INK, MUTED, PALE, PAPER, PT_PER_INCH, VERDICTS, WIDTH, Picture, styled, tint
from minids.book.plots.tokens import CELL, END, MONO, SIZE, Piece, draw_token, lay_out, spoken
from minids.inference.generate import Generation
from minids.text.tokenizer import Tokenizer
from minids.validation import require

LEFT, PITCH = 14, 23  # margin of the text, and points from one line to the next
COLUMNS = int((WIDTH * PT_PER_INCH - 2 * LEFT) / CELL)
SHOWN = 60  # characters of the prompt at most
FIRST, ACCEPTED, OWN, BONUS, REJECTED = "first", "accepted", "own", "bonus", "rejected"
GREEN, RED = tint(VERDICTS["right"], 0.45), VERDICTS["wrong"]
COLORS = {ACCEPTED: GREEN, OWN: PAPER, BONUS: PALE, FIRST: PAPER}
KEY = {  # what the boxes stand for
    ACCEPTED: "accepted draft", REJECTED: "rejected draft", OWN: "main model’s own token instead",
    BONUS: "bonus token",
}  # fmt: skip


@dataclass(frozen=True)
class Emitted:
    """A token of the text, the step that it comes from, and how: as prefill's first token, as an accepted draft, as
    the main model's own token in the place of the `rejected` draft, or as the bonus token after accepted drafts."""

    token: int
    step: int
    kind: str
    rejected: int | None = None


def emitted(generation: Generation, row: int = 0) -> list[Emitted]:
    """Return the new tokens of a row with what its verdicts say of them, without the filling behind its end.

    Raises ValueError for text written without speculation, and for a row that is not there.
    """
    speculative = generation.verdicts is not None
    require("speculative", speculative, speculative, "True in `generate`")
    rows = torch.atleast_2d(generation.new_tokens)
    require("row", row, 0 <= row < len(rows), f"0 to {len(rows) - 1}")
    found = [Emitted(int(rows[row, 0]), 1, FIRST)]
    for step, verdict in enumerate(generation.verdicts, start=2):
        drafts, accepted = verdict.drafts_BK[row].tolist(), int(verdict.accepted_B[row])
        came = [Emitted(draft, step, ACCEPTED) for draft in drafts[:accepted]]
        token, rejected = int(verdict.next_B[row]), [*drafts, None][accepted]
        came.append(Emitted(token, step, BONUS if accepted == len(drafts) else OWN, rejected))
        found += came[: verdict.new_B[row]]  # the text may end in the middle of a step
    return found


@styled()
def draw_drafted_text(generation: Generation, tokenizer: Tokenizer, row: int = 0) -> Picture:
    """Draw the text that a row of a speculative generation wrote, one box per token, the tokens of a step underlined.

    Raises ValueError for text written without speculation.
    """
    tokens, spelled = emitted(generation, row), [piece.decode(errors="replace") for piece in tokenizer.token_bytes()]
    prompt = torch.atleast_2d(generation.tokens)[row, : generation.prompt_length].tolist()
    before = "".join(spelled[token] for token in prompt)
    items: list[tuple[str, Emitted | None, str]] = [(f"…{before[-SHOWN:]}" if before[SHOWN:] else before, None, "")]
    for one in tokens:
        if one.rejected is not None:  # in one line, as it does not break the text
            items.append(((spelled[one.rejected] or END).replace("\n", "↵"), one, REJECTED))
        items.append((spelled[one.token] or END, one, one.kind))
    pieces = list(lay_out([text for text, *_ in items], COLUMNS))
    d = Diagram(height=96 + PITCH * (max(piece.line for piece in pieces) + 1))
    for piece in pieces:
        _, one, kind = items[piece.index]
        _draw_piece(d, piece, one, kind)
    x = LEFT
    for kind, words in KEY.items():
        _draw_kind(d, x, 14, "token", kind)
        d.text(x + 5 * CELL + 6, 14, words)
        x += 5 * CELL + 22 + 5.8 * len(words)  # about the width of the words
    kinds = Counter(one.kind for one in tokens)
    steps = len({one.step for one in tokens})
    drafts = (steps - 1) * generation.drafts_per_step
    finding = (
        f"{len(tokens)} tokens in {steps} steps, {len(tokens) / steps:.2f} per step: {kinds[ACCEPTED]} of {drafts} "
        "drafts accepted"
    )
    d.text(LEFT - 1, d.height - 24, finding, size=14)
    d.text(
        LEFT,
        d.height - 43,
        "a line below: the tokens of one step; framed in grey: the first token, from prefill",
        color=MUTED,
    )
    replaced = [one for one in tokens if one.kind == OWN][:5]
    pairs = ", ".join(f"{spoken(spelled[one.token])} for {spoken(spelled[one.rejected])}" for one in replaced)
    d.figure.alt = (
        f"{finding}. {kinds[ACCEPTED]} tokens are accepted drafts, {kinds[OWN]} the main model’s own in the place of a "
        f"rejected draft, {kinds[BONUS]} bonus tokens, and one is from prefill."
        + (f" First replacements: {pairs}." if pairs else "")
    )
    return d.figure


def _draw_piece(d: Diagram, piece: Piece, one: Emitted | None, kind: str) -> None:
    """Draw a token, or a part of it, and the line below that joins it to the others of its step."""
    x, y = LEFT + CELL * piece.column, d.height - 72.0 - PITCH * piece.line
    if one is None:
        d.text(x, y, piece.text, color=MUTED, size=SIZE, **MONO)
        return
    _draw_kind(d, x, y, piece.text, kind)
    last = kind in (OWN, BONUS, FIRST)  # of its step, so the line ends a little earlier
    end = x + CELL * len(piece.text) - (4 if last else 0)
    d.ax.plot([x, end], [y - 7.5, y - 7.5], color=MUTED, linewidth=1.4, solid_capstyle="butt", zorder=3)


def _draw_kind(d: Diagram, x: float, y: float, text: str, kind: str) -> None:
    if kind != REJECTED:
        draw_token(d, x, y, text, COLORS[kind], edge={OWN: INK, FIRST: LINE}.get(kind, "none"))
        return
    draw_token(d, x, y, text, PAPER, ink=RED, edge=LINE)
    d.ax.plot([x + 1, x + CELL * len(text) - 1], [y + 3.5, y + 3.5], color=RED, linewidth=1.2, zorder=5)
