"""What real processes did, above what the simulator computes for them (chapter 8)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from minids.book.plots.c08_timeline import draw_rows, key, label_ranks, name_of
from minids.book.plots.style import INK, Picture, new_figure, styled
from minids.parallel.execute import Executed
from minids.parallel.schedules import Schedule
from minids.parallel.simulate import Times, simulate

ROW = 0.35  # inches


def simulated(schedule: Schedule, times: Times) -> list[list[Executed]]:
    """Return the simulation in the form of an execution, where the two parts of a pair follow one another."""
    rows = []
    for spans in simulate(schedule, times).spans:
        rows.append(row := [])
        for span in spans:
            start = float(span.start)
            for part in span.action.parts:
                end = start + float(times.of(part))
                row.append(Executed(part, start, end))
                start = end
    return rows


def from_zero(rows: Sequence[Sequence[Executed]]) -> tuple[list[list[Executed]], float]:
    """Return a timeline in which the first action starts at 0, and its length."""
    begin, end = min(row[0].start for row in rows), max(row[-1].end for row in rows)
    return [[Executed(done.action, done.start - begin, done.end - begin) for done in row] for row in rows], end - begin


def compared(measured: float, expected: float) -> str:
    """Say how much longer or shorter a measured time is than the expected one."""
    percent = round(100 * (measured / expected - 1))
    return "the same" if percent == 0 else f"{abs(percent)}% {'more' if percent > 0 else 'less'}"


@styled()
def draw_measured(name: str, schedule: Schedule, timeline: Sequence[Sequence[Executed]], times: Times) -> Picture:
    """Draw the timeline of a run's processes, and below it the simulated one, both in seconds from the first action on.

    `times` is the pace of the run. Its `pair` must be that of a forward and a backward without overlap.
    """
    executed, found = from_zero(timeline)
    expected, wanted = from_zero(simulated(schedule, times))
    longest = max(found, wanted)
    panel = ROW * len(schedule)
    fig = new_figure(height=2 * panel + 2.0)
    high = fig.get_size_inches()[1]
    for rows, bottom, what, seconds in (
        (executed, panel + 1.1, "measured", found), (expected, 0.7, "simulated", wanted)
    ):  # fmt: skip
        ax = fig.add_axes((0.075, bottom / high, 0.89, panel / high))
        draw_rows(ax, rows, times, length=longest)
        ax.axvline(seconds, color=INK, linewidth=1.5, clip_on=False)
        label_ranks(ax, len(schedule))
        fig.text(0.075, (bottom + panel + 0.06) / high, what, size=12, weight="bold")
        end = (seconds, len(schedule))
        ax.annotate(f"{seconds:.2f} s", end, (0, 5), textcoords="offset points", size=12, ha="right")
    ax.spines["bottom"].set_visible(True)
    ax.xaxis.set_major_locator(MaxNLocator(7))
    ax.xaxis.set_major_formatter("{x:g} s")
    fig.title(f"{name}: {len(schedule)} processes took {found:.2f} s, simulated {wanted:.2f} s: "
              f"{compared(found, wanted)}", y=1 - 0.32 / high)  # fmt: skip
    key(fig, 0.14 / high, schedule, x=0.075)
    fig.alt = f"{name_of(schedule, name)}: measured above, simulated below, with the same actions in the same order"
    return fig
