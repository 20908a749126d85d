"""Text of a trained model coloured by expert, and the tokens that one expert prefers."""

from __future__ import annotations

from itertools import takewhile

import numpy as np
from matplotlib.patches import Rectangle

from minids.book.plots.diagram import Diagram
from minids.book.plots.helpers import DASHED
from minids.book.plots.style import INK, LAYERS, MUTED, PALE, PT_PER_INCH, WIDTH, Picture, readable_on, styled, tint
from minids.book.plots.tokens import CELL, END, MONO, PITCH, SIZE, Piece, draw_token, lay_out, spoken, visible
from minids.book.probes.specialists import (
    LEAST,
    Observed,
    Preferred,
    first_experts,
    places,
    preferred_tokens,
    relative_shares,
    same_first_expert,
    typical_tokens,
    weights_of,
)

LEFT, RIGHT = 92, 14  # margins of the text
COLUMNS = int((WIDTH * PT_PER_INCH - LEFT - RIGHT) / CELL)
SHADES = tuple(tint(color, 0.8) for color in LAYERS[1:7])  # of single experts
SIGNS = f"(· space, ↵ newline, {END} end of a text)"
# What is shown: row of the domain, position to start from, lines, and whether they end at newlines.
PASSAGE = {"prose": (2, 100, 4, True), "code": (7, 100, 7, True), "arithmetic": (7, 60, 2, False)}

Place = tuple[int, int]  # row and position of a token


@styled()
def draw_coloured_text(
    observed: Observed, layer: int = 1, expert: int | str = "all", passage: dict = PASSAGE
) -> Picture:
    """Draw a passage of held-out text, every token coloured by the expert that has the largest weight for it.

    Two dozen colours could not be told apart, so the six experts with the most tokens of the passage have one each.
    With the number of an expert, only its tokens are coloured, the darker the larger its share of the weights.
    """
    pieces = {domain: _lay_out(observed, domain, *part) for domain, part in passage.items()}
    lines = [max(piece.line for _, piece in part) + 1 for part in pieces.values()]
    shown = sorted({place for part in pieces.values() for place, _ in part})
    d = Diagram(height=66 + PITCH * sum(lines) + 8 * len(lines) + 96)
    key = _key_of_one if expert != "all" else _key_of_all
    color_of = key(d, observed, layer, expert, shown)
    y = d.height - 72.0
    for (domain, part), count in zip(pieces.items(), lines, strict=True):
        d.text(LEFT - 12, y, domain, size=12, ha="right")
        for place, piece in part:
            draw_token(d, LEFT + CELL * piece.column, y - PITCH * piece.line, piece.text, color_of[place])
        y -= PITCH * count + 8
    return d.figure


def _key_of_all(d: Diagram, observed: Observed, layer: int, _, shown: list[Place]) -> dict[Place, str]:
    """Write the title and which colours the busiest experts have; return the colour of each token."""
    first = first_experts(observed, layer)
    numbers, counts = np.unique([first[place] for place in shown], return_counts=True)
    order = np.argsort(-counts, kind="stable")[: len(SHADES)]
    shares = dict(zip(numbers[order].tolist(), (counts[order] / len(shown)).tolist(), strict=True))
    color = dict(zip(shares, SHADES, strict=False))
    typical = {expert: _spell(observed, typical_tokens(observed, layer, expert, 5)) for expert in shares}
    for i, (expert, share) in enumerate(shares.items()):
        x, y = (14 + 320 * (i // 3), 56 - 21 * (i % 3))
        d.ax.add_artist(Rectangle((x, y - 4.5), 24, 16, facecolor=color[expert], edgecolor="none"))
        d.text(x + 12, y, f"{expert}", size=11, ha="center", color=readable_on(color[expert]))
        d.text(x + 60, y, f"{share:.0%}", size=11, ha="right")
        d.text(x + 70, y, typical[expert][:34], size=SIZE, **MONO)
    equal, any_two = same_first_expert(observed, layer)
    finding = (
        f"MoE layer {layer}: equal tokens have the same first expert in {equal:.0%} of cases, any two in {any_two:.0%}"
    )
    what = (
        f"colour: the expert with the largest weight, for the {len(shares)} with most of these tokens; grey: the others"
    )
    d.text(13, d.height - 24, finding, size=14)
    d.text(14, d.height - 43, what, color=MUTED)
    d.text(14, 79, f"share of these tokens, and tokens typical of the expert {SIGNS}", color=MUTED)
    d.figure.alt = f"{finding}. First experts of the text that is shown: " + "; ".join(
        f"{expert} for {share:.0%}, typical {_speak(observed, typical_tokens(observed, layer, expert, 5))}"
        for expert, share in shares.items()
    )
    return {place: color.get(int(first[place]), PALE) for place in shown}


def _key_of_one(d: Diagram, observed: Observed, layer: int, expert: int, shown: list[Place]) -> dict[Place, str]:
    """Write the title and what the depth of the colour means; return the colour of each token."""
    weights, typical = weights_of(observed, layer, expert), typical_tokens(observed, layer, expert, 12)
    for i, weight in enumerate((0.1, 0.3, 0.5)):
        color, text = _shade(weight), f"{weight:.0%}" if weight < 0.5 else "50%+"
        d.ax.add_artist(Rectangle((14 + 46 * i, 51.5), 40, 16, facecolor=color, edgecolor="none"))
        d.text(34 + 46 * i, 56, text, ha="center", color=readable_on(color))
    d.text(160, 56, "the expert’s share of the token’s weights", color=MUTED)
    d.text(14, 35, f"typical of it in all held-out text {SIGNS}:", color=MUTED)
    d.text(14, 14, _spell(observed, typical)[:92], size=SIZE, **MONO)
    share, average = np.mean([weights[place] > 0 for place in shown]), (weights > 0).mean()
    finding = f"MoE layer {layer}, expert {expert}: {share:.0%} of these tokens are routed to it"
    k, n_experts = observed.config.num_experts_per_tok, observed.config.n_routed_experts
    even = f"each token is routed to {k} of {n_experts} experts: an even share would be {k / n_experts:.0%}"
    d.text(13, d.height - 24, finding, size=14)
    d.text(14, d.height - 43, f"{even}; of all held-out text it gets {average:.0%}", color=MUTED)
    d.figure.alt = f"{finding}. Typical of it in all held-out text: {_speak(observed, typical)}"
    return {place: _shade(float(weights[place])) if weights[place] else PALE for place in shown}


def _shade(weight: float) -> str:
    return tint(SHADES[0], 0.2 + 0.8 * min(1, weight / 0.5))


def _spell(observed: Observed, tokens: list[Preferred]) -> str:
    return "  ".join(visible(observed.spelled[token.token]) for token in tokens)


def _speak(observed: Observed, tokens: list[Preferred]) -> str:
    return ", ".join(spoken(observed.spelled[token.token]) for token in tokens)


def _lay_out(
    observed: Observed, domain: str, row: int, start: int, lines: int, broken: bool
) -> list[tuple[Place, Piece]]:
    """Return so many lines of a row's text from the next newline on, wrapped between tokens, with their places."""
    row += observed.rows(domain).start
    texts = [observed.spelled[token] or END for token in observed.tokens[row]]
    start = next((place for place in range(start, len(texts)) if "\n" in texts[place - 1]), start)
    pieces = takewhile(lambda piece: piece.line < lines, lay_out(texts[start:], COLUMNS, broken))
    return [((row, start + piece.index), piece) for piece in pieces]


# ---------------------------------------------------------------------------------------------------
# One expert

BARS, BAR_PITCH, AXIS = 12, 18, (112, 250)  # bars, points from one to the next, left edge and length of a whole bar
BEFORE, LONGEST = 40, 93  # characters before the marked token of a context, and of all of it
AROUND = 16  # tokens at least on either side of it


@styled()
def draw_expert_tokens(observed: Observed, expert: int = 2, layer: int = 1) -> Picture:
    """Draw the tokens that an expert prefers most, the domains of its tokens, and three places where it is chosen.

    A bar is the share of a token's occurrences that are routed to the expert; only tokens seen 20 times or more.
    """
    best, weights = preferred_tokens(observed, layer, expert)[:BARS], weights_of(observed, layer, expert)
    average = float((weights > 0).mean())
    d = Diagram(height=80 + BAR_PITCH * BARS + 112)
    left, length = AXIS
    top = d.height - 74.0
    for i, token in enumerate(best):
        y = top - BAR_PITCH * (i + 1) + 6
        d.text(left - 8, y, visible(observed.spelled[token.token])[:14], size=SIZE, ha="right", **MONO)
        _bar(d, left, y, length * token.share, SHADES[0])
        d.text(left + length * token.share + 8, y, f"{token.share:.0%} of {token.seen:,}", size=11)
    x = left + length * average
    d.ax.plot([x, x], [top - BAR_PITCH * len(best), top + 2], color=INK, linewidth=1, linestyle=DASHED, zorder=5)
    d.text(x - 6, top + 7, f"all tokens {average:.0%}", size=11, color=MUTED)
    d.text(14, d.height - 43, "share of a token’s occurrences that are routed to the expert; tokens seen "
           f"{LEAST} times or more", color=MUTED)  # fmt: skip
    shares = relative_shares(observed, layer)[:, expert]
    d.text(464, top + 7, "times its even share", color=MUTED)
    for i, (domain, share) in enumerate(zip(observed.domains, shares, strict=True)):
        y = top - BAR_PITCH * (i + 1) + 6
        d.text(532, y, domain, size=11, ha="right")
        _bar(d, 540, y, 15 * share, SHADES[0])
        d.text(634, y, f"{share:.1f}", size=11, ha="right")
    d.ax.plot([555, 555], [top - BAR_PITCH * len(shares), top + 2], color=INK, linewidth=1, linestyle=DASHED, zorder=5)
    d.text(14, 94, "three places; every token that is routed to the expert is coloured by its weight", color=MUTED)
    for i, place in enumerate(_contexts(observed, layer, expert, best)):
        _draw_context(d, observed, weights, place, 66 - 24 * i)
    favourite = f"{best[0].share:.0%} of “{visible(observed.spelled[best[0].token])}” and " if best else ""
    title = f"Expert {expert} of MoE layer {layer} gets {favourite}{average:.0%} of all tokens"
    d.text(13, d.height - 24, title, size=14, parse_math=False)
    said = "; ".join(f"{spoken(observed.spelled[token.token])}: {token.share:.0%} of {token.seen}" for token in best)
    d.figure.alt = (
        f"Expert {expert} of MoE layer {layer} gets {average:.0%} of all tokens and, of the tokens that it prefers: "
        f"{said or 'none'}"
    )
    return d.figure


def _contexts(observed: Observed, layer: int, expert: int, best: list[Preferred]) -> list[Place]:
    """Return a place of each of the three most preferred tokens, where enough text stands around it."""
    length, found = observed.tokens.shape[1], []
    for token in best:
        there = [
            place for place in places(observed, layer, expert, token.token) if AROUND <= place[1] < length - AROUND
        ]
        if there:
            found.append(there[len(there) // 2])
    return found[:3]


def _draw_context(d: Diagram, observed: Observed, weights: np.ndarray, place: Place, y: float) -> None:
    """Draw a line of text around a token, which is outlined."""
    row, marked = place
    texts = [(observed.spelled[token] or END).replace("\n", "↵") for token in observed.tokens[row]]
    column = BEFORE - len("".join(texts[:marked]))
    for position, text in enumerate(texts):
        if column >= 0 and column + len(text) <= LONGEST:
            x, weight = 14 + CELL * column, float(weights[row, position])
            draw_token(d, x, y, text, _shade(weight) if weight else PALE)
            if position == marked:
                outline = dict(facecolor="none", edgecolor=INK, linewidth=1.4, zorder=5)
                d.ax.add_artist(Rectangle((x, y - 4.5), CELL * len(text), PITCH - 3, **outline))
        column += len(text)


def _bar(d: Diagram, x: float, y: float, width: float, color: str) -> None:
    d.ax.add_artist(Rectangle((x, y - 2.5), width, 13, facecolor=color, edgecolor="none", zorder=2))
