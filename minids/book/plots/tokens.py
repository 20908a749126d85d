"""Text drawn token by token: a box for each, in a monospaced type, so that places are counted in characters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from matplotlib.patches import Rectangle

from minids.book.plots.diagram import Diagram
from minids.book.plots.style import readable_on

MONO = {"family": "DejaVu Sans Mono", "parse_math": False}
SIZE, PITCH = 11, 18  # of the text's type and lines, in points
CELL = 0.602 * SIZE  # width of a character
END = "■"  # stands for the end of a text


@dataclass(frozen=True)
class Piece:
    """A token, or the part of it that stands on one line; `index` is its number among the tokens."""

    line: int
    column: int
    text: str
    index: int


def lay_out(texts: Iterable[str], columns: int, broken: bool = True) -> Iterator[Piece]:
    """Yield where the tokens of a text stand, wrapped between tokens.

    If `broken`, a line ends at a newline; else the text goes on beside it.
    """
    last, line, column = None, 0, 0
    for index, text in enumerate(texts):
        for part in re.findall(r"\n+|[^\n]+", text):
            ends = broken and part[0] == "\n"
            part = part.replace("\n", "↵")
            if ends and not column and last:  # an empty line: its mark stands at the end of the one before
                last = Piece(last.line, last.column + len(last.text), part, index)
                yield last
                continue
            if column + len(part) > columns:
                line, column = line + 1, 0
            last = Piece(line, column, part, index)
            yield last
            line, column = (line + 1, 0) if ends else (line, column + len(part))


def draw_token(
    d: Diagram, x: float, y: float, text: str, color: str, *, ink: str | None = None, edge: str = "none"
) -> None:
    """Draw a token in its box; (x, y) is where its text begins."""
    box = dict(facecolor=color, edgecolor=edge, linewidth=1, zorder=2)
    d.ax.add_artist(Rectangle((x + 0.4, y - 4.5), CELL * len(text) - 0.8, PITCH - 3, **box))
    if text.strip():
        d.text(x, y, text, size=SIZE, color=ink or readable_on(color), **MONO)


def visible(text: str) -> str:
    """Return a token's text with visible spaces and newlines: " of" as "·of", a newline and 7 spaces as "↵·7"."""
    text = re.sub(r" {3,}", lambda spaces: f"·{len(spaces[0])}", text or END)
    return text.replace(" ", "·").replace("\n", "↵")


def spoken(text: str) -> str:
    """Return a token's text in words, for a picture's text, which is read aloud and stands in Markdown."""
    words = []
    for part in re.findall(r"[^\W_]+| +|.", text, re.DOTALL):
        if part == "\n":
            words.append("newline")
        elif part[0] == " ":
            words += [f"{len(part)} spaces"] if len(part) > 1 else []
        else:
            words.append(part if part[0].isalnum() else unicodedata.name(part, "a sign").lower())
    return " ".join(words) or ("space" if text else "end of a text")
