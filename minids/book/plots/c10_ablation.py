"""The ablation table as a picture: what each part of the model is worth, in loss, cache, balance, drafts and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from minids.book.plots.helpers import OFFSETS, across, write_row
from minids.book.plots.style import INK, MUTED, PALE, Picture, new_figure, styled
from minids.units import short

if TYPE_CHECKING:
    from minids.book.ablation import Row

COLORS = {"worse": "#D55E00", "better": "#009E73", "not separated": MUTED, "one run": "#0072B2"}
SIGNS = {"worse": "worse", "better": "better", "not separated": "—", "one run": "one run"}
NAME, LEFT, RIGHT = 0.02, 0.41, 0.66  # of the picture's width: row names, and the axes of differences
SIZES = {"total": 0.265, "active": 0.33, "cache": 0.39}  # where a column ends
EQUAL_TIME = ", equal time"  # the end of a row's name
RESULTS = {"verdict": 0.73, "MaxVio": 0.805, "drafts": 0.87, "time": 0.93, "MB": 0.985}
HEADINGS = {"cache": "cache,\nbytes", "drafts": "drafts\ntaken", "time": "step’s\ntime", "MB": "peak\nMB"}


@styled()
def draw_ablation(rows: Sequence[Row]) -> Picture:
    """Draw each row's bits per byte minus the full model's: a dot for each run, a bar for the mean, and the columns.

    The first row is the full model. A diamond is the mean difference that a similar change made in an earlier chapter.
    Rows that a reader trained stand on a grey band.
    """
    full, *changes = rows
    fig = new_figure(height=2.0 + 0.36 * len(rows))
    bottom = 0.75 / fig.get_figheight()
    ax = fig.add_axes((LEFT, bottom, RIGHT - LEFT, 1 - 1.25 / fig.get_figheight() - bottom))
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.axvline(0, color=PALE, linewidth=2, zorder=0)
    headings = {x: HEADINGS.get(name, name) for name, x in (SIZES | RESULTS).items()}
    write_row(ax, -0.7, headings, color=MUTED, va="bottom", linespacing=1.1)
    for y, row in enumerate(rows):
        if not row.recorded:
            ax.axhspan(y - 0.5, y + 0.5, xmin=-3, xmax=3, color=PALE, alpha=0.6, zorder=-1, clip_on=False)
        ax.text(NAME, y, row.name, size=12, va="center", transform=across(ax))
        write_row(ax, y, {SIZES["total"]: short(row.total), SIZES["active"]: short(row.active)})
        write_row(ax, y, {SIZES["cache"]: f"{row.cache_bytes:,}"})
        write_row(ax, y, {RESULTS[name]: text for name, text in _cells(row).items()})
        if not any(row.differences):  # the full model
            ax.text(0, y, f"{row.bits.mean:.3f}", size=11, ha="center", va="center", color=INK,
                    bbox={"facecolor": "white" if row.recorded else "none", "edgecolor": "none", "pad": 2})  # fmt: skip
            continue
        color, values = COLORS[row.verdict], row.differences
        ax.plot([min(values), max(values)], [y, y], color=color, linewidth=1.2)
        ax.plot([row.difference] * 2, [y - 0.34, y + 0.34], color=color, linewidth=3, solid_capstyle="butt")
        ax.plot(values, y + OFFSETS[: len(values)], "o", color=color, markersize=4.5)
        if row.earlier is not None:
            ax.plot(row.earlier, y, "D", markerfacecolor="none", markeredgecolor=INK, markersize=6)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(lambda bits, _: f"{bits:.2f}".replace("-", "−"))
    ax.tick_params(axis="x", labelsize=10.5)
    ax.set_xlabel("bits per byte minus those of the full model, prose and code: right is worse", size=11)
    fig.title(title_of(changes), y=1 - 0.32 / fig.get_figheight())
    count = {verdict: sum(row.recorded and row.verdict == verdict for row in changes) for verdict in SIGNS}
    key = (
        f"worse: {count['worse']}; within the noise (—): {count['not separated']}. "
        "Dot: a run; bar: mean; diamond: a similar change, on another model"
    )
    fig.note(NAME, 1 - 0.62 / fig.get_figheight(), key, size=10.5)
    fig.alt = f"Full model {full.bits.mean:.3f} bits per byte. " + "; ".join(
        f"{row.name} {row.difference:+.3f} ({row.verdict})"
        if row.recorded
        else f"{row.name}, {len(row.differences)} run{'s' * (len(row.differences) > 1)}"
        for row in changes
    )
    return fig


def title_of(changes: Sequence[Row]) -> str:
    """Return what the recorded changes show, as a title."""
    recorded = [row for row in changes if row.recorded]
    better = [row.name for row in recorded if row.verdict == "better"]
    plain = [name for name in better if not name.endswith(EQUAL_TIME)]
    timed = [name.removesuffix(EQUAL_TIME) for name in better if name.endswith(EQUAL_TIME)]
    groups = [" · ".join(plain), f"at equal time {' · '.join(timed)}" if timed else ""]
    named = "; ".join(filter(None, groups))
    return f"{len(better)} of {len(recorded)} changes beat the full model{': ' * bool(named)}{named}"


def _cells(row: Row) -> dict[str, str]:
    cells = {"verdict": SIGNS[row.verdict] if any(row.differences) else ""}
    if row.max_violation is not None:
        cells["MaxVio"] = f"{row.max_violation:.2f}"
    if row.acceptance is not None:
        cells["drafts"] = f"{row.acceptance:.0%}"
    if row.step is not None:
        cells["time"] = f"{row.step:.2f}×"
    if row.peak_bytes is not None:
        cells["MB"] = f"{row.peak_bytes / 1e6:,.0f}"
    return cells
