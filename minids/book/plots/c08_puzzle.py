"""A pipeline whose actions a reader places: drawn in time, or with the reason why it cannot run (chapter 8)."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Sequence

from minids.book.plots.c08_timeline import draw_rows, key, label_ranks
from minids.book.plots.style import Picture, new_figure, styled
from minids.parallel.schedules import Action, Schedule
from minids.parallel.simulate import Span, Times, peak_activations, simulate


def as_schedule(words: Sequence[str], micro_batches: int | None = None) -> Schedule:
    """Return the schedule of words such as "F0 F0 I0 W0", one for each rank, which holds one stage.

    Without `micro_batches`, the number is that of the F0 of the rank with most of them.

    Each letter is numbered by how often it stands before, whether or not that order is legal. Raises ValueError for
    anything else than F0, I0 and W0.
    """
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words) or not words:
        raise ValueError(f"{words!r} is not a list of texts, one for each rank.")
    rows = []
    for rank, word in enumerate(words):
        done, row = Counter(), []
        for letter in word.split():
            if not re.fullmatch("[FIW]0", letter):
                raise ValueError(f"rank {rank}: {letter!r} is none of F0, I0 and W0.")
            row.append(Action(letter[0], 0, done[letter]))
            done[letter] += 1
        rows.append(row)
    most = max(1, *(word.count("F0") for word in words))
    return Schedule(rows, "loop", 1, most if micro_batches is None else micro_batches)


def reason(error: ValueError) -> str:
    """Return why words of F0, I0 and W0 cannot run. There is no B0 among them."""
    return re.sub(r"B(0\.\d+), or I and W, is missing", r"I\1 and W\1 are missing", str(error))


@styled()
def draw_words(words: Sequence[str]) -> Picture:
    """Draw words of F0, I0 and W0, each of which takes one unit of time.

    Words that no pipeline can run are drawn without gaps, below the reason.
    """
    kept, spans = [], []
    try:
        schedule = as_schedule(words)
        spans = [[Span(rank, action, i, i + 1, None) for i, action in enumerate(row)]
                 for rank, row in enumerate(schedule)]  # fmt: skip
        timeline = simulate(schedule)
    except ValueError as error:  # an IllegalSchedule is one
        what = f"These {len(words)} words" if isinstance(words, list | tuple) else "This"
        finding = f"{what} cannot run: {reason(error)}"
    else:
        spans, kept = timeline.spans, peak_activations(schedule)
        finding = (
            f"{timeline.length} units of time, {timeline.idle[0]} of them idle on every rank; "
            f"a rank keeps up to {max(kept)} micro-batches"
        )
    ranks = len(spans)
    lines = textwrap.wrap(finding, 82, break_on_hyphens=False)
    high = 0.85 + 0.24 * len(lines) + 0.4 * ranks
    fig = new_figure(height=high)
    if spans:
        ax = fig.add_axes((0.075, 0.45 / high, 0.86, 0.4 * ranks / high))
        draw_rows(ax, spans, Times())
        label_ranks(ax, ranks)
    if kept:
        fig.note(0.961, (0.53 + 0.4 * ranks) / high, "kept", ha="center")
    for rank, number in enumerate(kept):
        fig.note(0.961, (0.45 + 0.4 * (ranks - rank - 0.5)) / high, number, ha="center", va="center")
    fig.title("\n".join(lines), y=1 - (0.1 + 0.24 * len(lines)) / high)
    key(fig, 0.14 / high, Schedule([], "loop", 1, 1))
    fig.alt = finding
    return fig
