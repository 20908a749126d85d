"""DualPipe: its eight steps, and its half, DualPipeV (chapter 8)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

from minids.book.plots.c08_timeline import colour, draw_rows, key
from minids.book.plots.diagram import FAINT_INK, Diagram
from minids.book.plots.style import INK, MUTED, PALE, PT_PER_INCH, WIDTH, Picture, styled
from minids.parallel.schedules import Schedule, dualpipe, dualpipe_steps, dualpipe_v, one_f_one_b
from minids.parallel.simulate import Timeline, Times, peak_activations, simulate
from minids.validation import require, require_whole

RANKS, MICRO_BATCHES = 8, 20  # those of the report's figure 5
HALF = RANKS // 2
ROW, LEFT = 24, 116  # points: the height of a rank's row, and where its timeline begins
PAGE = WIDTH * PT_PER_INCH


def times_with(overlap: float) -> Times:
    """Return F = I = W = 1 with pairs that take 3, without any gain, to 2, where F disappears behind B."""
    require("overlap", overlap, 0 <= overlap <= 1, "a number from 0 to 1")
    return Times(pair=3 - overlap)


# ---------------------------------------------------------------------------------------------------
# The eight steps

TIMES = ["", "2(H − 1 − h)", "h + 1", "H − 1 − h", "m − 2H + h + 1", "H − 1 − h", "h + 1", "H − 1 − h", "h + 1"]


def words_of(rank: int) -> list[str]:
    """Return what a rank of the picture does in each step, with its own letters for the directions."""
    steps = dualpipe_steps(min(rank, RANKS - 1 - rank), HALF, MICRO_BATCHES // 2)
    return [step.translate(str.maketrans("01", "10")) if rank >= HALF else step for step in steps]


def repeated(step: int, word: str) -> tuple[int, str]:
    """Return how often a rank repeats the actions of a step, and these actions. Step 6 is on two lines, B and I."""
    letters = word.split()
    size = {1: 1, 2: 2, 3: 3, 4: 2, 5: 2, 6: 2, 7: 2, 8: 1}[step]
    times = sum(len(letter.split("&")) for letter in letters) // 4 if step == 4 else len(letters) // size
    lines = (letters[:times], letters[times:]) if step == 6 else (letters[-size:],)
    return times, "\n".join(" ".join(line) for line in lines)


def said_of(step: int, timeline: Timeline) -> tuple[str, str]:
    """Return the finding of a step, and what the ranks of the upper half do in it and why."""
    outer, middle = ([] if not step else words_of(rank)[step - 1].split() for rank in (0, HALF - 1))
    n = repeated(step, " ".join(outer))[0] if step else 0
    first = {str(part): float(span.start) for span in reversed(timeline.spans[0]) for part in span.action.parts}
    others = simulate(one_f_one_b(RANKS, MICRO_BATCHES)).bubble
    most = max(peak_activations(dualpipe(RANKS, MICRO_BATCHES)))
    one_way = MICRO_BATCHES // 2
    pair, alone = (max(float(span.end - span.start) for row in timeline.spans for span in row
                       if len(span.action.parts) == parts) for parts in (2, 1))  # fmt: skip
    pairs = [span for span in timeline.spans[0] if len(span.action.parts) == 2]
    gap = float(pairs[1].start - pairs[0].end)
    slower = f"\nRank 1 still does pairs of {pair:g}, longer than a B of {alone:g}, so rank 0 waits before each pair."
    return [
        (f"{RANKS} ranks, {MICRO_BATCHES} micro-batches: {timeline.bubble:.0%} of the time is idle with DualPipe, "
         f"{others:.0%} with 1F1B",
         f"{one_way} micro-batches enter at rank 0 and {one_way} at rank {RANKS - 1}. B is I and W. A forward "
         "above a B is an overlapped pair, F&B.\nEvery rank does the same eight steps (numbers above rank 0); its "
         "distance from the end says how often.\nThe lower half exchanges the directions."),
        (f"Step 1: {n} forwards on rank 0, none in the middle, until the other direction arrives",
         f"Direction 1 begins at rank {RANKS - 1} and reaches rank 0 at time {first['F1.0']:g}. Until then, there "
         "are only forwards of direction 0.\n(The last of them is in step 2.) In the middle, direction 1 "
         "arrives right after direction 0."),
        (f"Step 2: both directions in turn, until every rank has done {2 * HALF} forwards",
         "The nearer a rank is to the middle, the earlier it begins with this step, and the longer it alternates.\n"
         f"Then every rank holds the activations of {2 * HALF} micro-batches, as many as there are stages. Step 4 "
         f"adds one more:\n{most} is the most that a rank ever holds."),
        (f"Step 3: the first backwards; {n} W of rank 0 fill the time until direction 0 returns",
         "Rank 0 holds the last stage of direction 1, so it can begin with backwards: I first, which rank 1 waits for."
         f"\nThe first gradient of direction 0 comes back at time {first['B0.0']:g}. Until then, rank 0 has only its "
         "last forwards to do,\nand these W. If rank 0 kept these W for later, it would be idle here."),
        (f"Step 4, the steady state: {''.join(outer).count('&')} pairs on rank 0, {''.join(middle).count('&')} on rank "
         f"{HALF - 1}",
         "Every forward overlaps with a backward of the other direction: the two directions provide such pairs.\n"
         "(Only the first F0 and B1 of the middle ranks stand alone.) More micro-batches lengthen this step and no "
         f"other.\nRank 0 is idle for {gap:g}: its second pair needs the first gradient of direction 0, which is still "
         "on its way."),
        (f"Step 5: direction 0 has no forward left, so {n} backwards of rank 0 stand alone",
         "All micro-batches that enter at this end have started, while the last ones from the other end still arrive.\n"
         "So B0 still has a forward to overlap with, and B1 has none." + (slower if pair > alone else "")),
        (f"Step 6: only backwards are left; W is postponed in half of them, up to {len(middle) // 2} on a rank",
         "From here on, every rank needs the last gradients from its neighbours. With I alone, they arrive earlier,\n"
         "and W is saved for the gaps to come."
         + (f"\nA pair takes {pair:g}, longer than a B, so ranks 1 to {HALF - 1} still wait for some gradients."
            if pair > alone else "")),
        (f"Step 7: {n} postponed W of rank 0 fill the gaps between its last gradients",
         "The last gradients of direction 0 come back one after the other. W fills the time until the next one "
         "arrives:\nwithout it, the rank would be idle before each I0."),
        (f"Step 8: {len(outer)} W on rank 0 and {len(middle)} on rank {HALF - 1}, and all ranks end at the same time",
         "W waits for no other rank, so there are no gaps. The middle ranks finish their last I first, and rank 0 "
         "last:\nso the middle has more time left for W."),
    ][step]  # fmt: skip


@styled()
def draw_steps(step: int = 0, rank: int = 0, overlap: float = 1.0) -> Picture:
    """Draw DualPipe on 8 ranks with 20 micro-batches; `step` lights one of its eight steps, 0 all.

    Below the timeline is the word of a rank. Raises ValueError for a step or a rank that does not exist.
    """
    for name, value, most in (("step", step, 8), ("rank", rank, RANKS - 1)):
        require_whole(name, value, at_least=0)
        require(name, value, value <= most, f"at most {most}")
    schedule, times = dualpipe(RANKS, MICRO_BATCHES), times_with(overlap)
    timeline = simulate(schedule, times)
    words = [words_of(r) for r in range(RANKS)]
    ends = [[sum(len(word.split()) for word in row[:k]) for k in range(9)] for row in words]
    begin, end = (step - 1, step) if step else (0, 8)
    lit = {(r, i) for r in range(RANKS) for i in range(ends[r][begin], ends[r][end])}
    d = Diagram(height=420)
    finding, why = said_of(step, timeline)
    d.text(13, d.height - 25, finding, size=14)
    top = d.height - 56
    ax = _rows(d, schedule, timeline, times, top, lit=lambda r, i: (r, i) in lit, chosen=rank,
               numbered="FBIW" if step else "FBI")  # fmt: skip
    _ways(d, top, RANKS)
    if not step:
        _borders(ax, timeline, ends)
    counts = [repeated(step, row[step - 1])[0] for row in words] if step else []
    for r, n in enumerate(counts):
        d.text(600, top - ROW * (r + 0.5), f"{n}", va="center", ha="right", weight="bold")
    if step:
        d.text(600, top + 9, f"{TIMES[step]} times", color=MUTED, ha="right")
        own = timeline.spans[rank][ends[rank][step - 1] : ends[rank][step]]
        if own:
            left, wide = float(own[0].start), float(own[-1].end - own[0].start)
            ax.add_artist(Rectangle((left, RANKS - 1 - rank + 0.03), wide, 0.94, facecolor="none", edgecolor=INK,
                                    linewidth=1.6, zorder=5, clip_on=False))  # fmt: skip
    bottom = top - ROW * RANKS
    d.text(13, bottom - 28, why, linespacing=1.3, va="top")
    _word(d, words[rank], step, rank, bottom - 150)
    key(d.figure, 8 / d.height, schedule, x=13 / PAGE)
    d.figure.alt = (
        f"{finding}. {why} ".replace("\n", " ")
        + (f"{TIMES[step]} times on ranks 0 to {RANKS - 1}: {', '.join(map(str, counts))}. " if step else "")
        + f"Rank {rank}: {' '.join((words[rank][step - 1] if step else ''.join(words[rank])).split())}. "
        + f"Idle: {', '.join(f'{float(idle):g}' for idle in timeline.idle)}"
    )
    return d.figure


def _borders(ax: Axes, timeline: Timeline, ends: Sequence[Sequence[int]]) -> None:
    """Draw where the steps of each rank end, and write their numbers above rank 0."""
    for rank, row in enumerate(timeline.spans):
        floor = RANKS - 1 - rank
        at = [float(row[end - 1].end) if end else float(row[0].start) for end in ends[rank]]
        inner = [end for end in at if at[0] < end < at[-1]]
        ax.vlines(inner, floor + 0.02, floor + 0.98, color=INK, linewidth=1.6, zorder=5)
        if rank == 0:
            for k, (start, end) in enumerate(itertools.pairwise(at), 1):
                ax.text((start + end) / 2, RANKS + 0.32, f"{k}", size=12, weight="bold", ha="center")


def _word(d: Diagram, words: Sequence[str], step: int, rank: int, y: float) -> None:
    """Draw a rank's word, one box for each step."""
    h, one_way = min(rank, RANKS - 1 - rank), MICRO_BATCHES // 2
    d.text(13, y + 58, f"Rank {rank}", weight="bold")
    held = f"holds stages {rank} and {RANKS - 1 - rank}."
    if step:
        held += f"   h = {h} rank{'s' * (h != 1)} from its end, H = {HALF} in each half, "
        held += f"m = {one_way} micro-batches from each end"
    d.text(60, y + 58, held, color=MUTED)
    x, space = 13.0, 4.0
    widths = (58, 66, 80, 88, 88, 96, 66, 52)
    for k, (word, wide) in enumerate(zip(words, widths, strict=True), 1):
        n, unit = repeated(k, word)
        on = step in (0, k) and n > 0
        color = INK if on else FAINT_INK
        d.box(x, y, wide, 50, lit=on)
        if k == step:
            d.outline(x, y, wide, 50)
        d.text(x + 6, y + 35, f"{k}", weight="bold", size=12, color=color)
        d.text(x + wide - 6, y + 35, f"{n} ×" if k != 6 else "", ha="right", color=color)
        lines = unit.replace(" ", "\n") if k in (4, 5) else unit
        d.text(x + wide / 2, y + (22 if "\n" in lines and k == 6 else 17), lines, ha="center", va="center",
               linespacing=1.2, color=color, size=10.5)  # fmt: skip
        x += wide + space


# ---------------------------------------------------------------------------------------------------
# Ranks with their stages, and a timeline beside them


def _rows(
    d: Diagram, schedule: Schedule, timeline: Timeline, times: Times, top: float, *,
    lit: Callable[[int, int], bool], chosen: int | None = None, right: float = 574, pale: Sequence[int] = (),
    numbered: str = "FBI",
) -> Axes:  # fmt: skip
    """Draw the ranks from `top` down: their stages, their actions, their idle time. Return the timeline's axes.

    Actions that are lit and of a kind in `numbered` have the numbers of their micro-batches.
    """
    high = ROW * len(schedule)
    ax = d.figure.add_axes((LEFT / PAGE, (top - high) / d.height, (right - LEFT) / PAGE, high / d.height))
    kinds = [[span.action.parts[0].kind for span in row] for row in timeline.spans]
    draw_rows(ax, timeline.spans, times, lit=lit, pair_size=0.49,
              numbered=lambda rank, i: lit(rank, i) and kinds[rank][i] in numbered)  # fmt: skip
    for rank in range(len(schedule)):
        y, ink = top - ROW * (rank + 0.5), FAINT_INK if rank in pale else INK
        d.text(54, y, f"rank {rank}", ha="right", va="center", weight="bold" if rank == chosen else "normal", color=ink)
        for chunk, x in enumerate((72, 98)):
            face = PALE if rank in pale else colour("F", chunk)
            d.ax.add_artist(Circle((x, y), 8.5, facecolor=face, edgecolor="none", zorder=4))
            stage = schedule.place(rank, chunk).stage
            d.text(x, y - 0.5, f"{stage}", ha="center", va="center", size=10.5, color=ink)
        idle = f"{float(timeline.idle[rank]):.3g}"
        d.text(636, y, idle, ha="right", va="center", color=FAINT_INK if rank in pale else MUTED)
    d.text(636, top + 9, "idle", color=MUTED, ha="right")
    for time in range(10, int(timeline.length) + 1, 10):
        x = LEFT + (right - LEFT) * time / float(timeline.length)
        if x < right - 6:
            d.text(x, top - high - 12, f"time {time}" if time == 10 else f"{time}", color=MUTED, ha="center")
    return ax


def _ways(d: Diagram, top: float, ranks: int, *, turn: bool = False, pale: Sequence[int] = ()) -> None:
    """Draw the way of micro-batches through the stages: one from each end, or down and up again."""
    first, last = top + 5, top - ROW * ranks - 5
    light, dark = colour("F", 0), colour("F", 1)
    if turn:
        _way(d, [(72, first), (72, last), (86, last)], light, head=False)
        _way(d, [(84, last), (98, last), (98, first)], dark)
        return
    for points, face in (([(72, first), (72, last)], light), ([(98, last), (98, first)], dark)):
        _way(d, points, face)
        if pale:
            cut = top - ROW * pale[0]
            _way(d, [(points[0][0], cut), (points[0][0], last)], PALE, head=face == light)
    d.text(80, top + 9, "direction 0", ha="right", color=MUTED)
    d.text(110, last - 16, "direction 1", ha="right", color=MUTED)


def _way(d: Diagram, points: Sequence[tuple[float, float]], face: str, head: bool = True) -> None:
    d.ax.plot(*zip(*points, strict=True), color=face, linewidth=4, zorder=2, solid_capstyle="butt")
    if head:
        (_, before), (x, end) = points[-2:]
        ahead = 4 if end > before else -4
        d.ax.add_artist(FancyArrowPatch((x, end - ahead), (x, end + ahead), color=face, linewidth=0.1, shrinkA=0,
                                        arrowstyle="-|>,head_length=6,head_width=5", shrinkB=0, mutation_scale=1,
                                        zorder=3))  # fmt: skip


# ---------------------------------------------------------------------------------------------------
# Folded


@styled()
def draw_fold(step: int = 2, overlap: float = 1.0) -> Picture:
    """Draw how DualPipe (step 0) is cut in the middle (1), and its upper half folded to DualPipeV (2).

    The lines are the forwards of the first micro-batch of each direction. Raises ValueError for another step.
    """
    require_whole("step", step, at_least=0)
    require("step", step, step <= 2, "at most 2")
    times = times_with(overlap)
    schedule = dualpipe_v(HALF, MICRO_BATCHES // 2) if step == 2 else dualpipe(RANKS, MICRO_BATCHES)
    timeline = simulate(schedule, times)
    d = Diagram(height=346)
    top, pale = d.height - 56, range(HALF, RANKS) if step == 1 else ()
    ax = _rows(d, schedule, timeline, times, top, lit=lambda rank, i: rank not in pale, pale=pale, right=612)
    _ways(d, top, len(schedule), turn=step == 2, pale=pale)
    turn: list[tuple[float, float]] = []
    for chunk, line in ((0, "-"), (1, (0, (3, 2)))):
        spans = [span for row in timeline.spans for span in row if str(span.action) == f"F{chunk}.0"]
        way = turn + [
            (float(span.start + span.end) / 2, len(schedule) - 0.5 - span.rank)
            for span in sorted(spans, key=lambda span: span.start)
        ]
        turn = way[-1:] if step == 2 else []
        ax.plot(*zip(*way, strict=True), color=INK, linestyle=line, linewidth=1.6, zorder=6)
    if step == 1:
        y = (top - ROW * HALF) / d.height
        d.figure.add_artist(Line2D((13 / PAGE, 640 / PAGE), (y, y), color=INK, linewidth=1.4, linestyle=(0, (6, 4))))
    if step == 2:
        _compared(d, times, top - ROW * HALF - 44)
    last = HALF - 1
    finding, why = [
        (f"DualPipe on {RANKS} ranks: each of the {RANKS} stages is on two of them",
         f"Rank r holds stage r of direction 0 and stage {RANKS - 1} − r of direction 1. So does rank {RANKS - 1} − r, "
         "the other way round.\nThe lines are the forwards of micro-batch 0 of each direction (dashed: direction 1)."),
        (f"The cut: ranks {HALF} to {RANKS - 1} are a mirror image, and each half holds all {RANKS} stages",
         f"Whenever rank {last} sends an output of stage {last} to rank {HALF}, it receives one of the same stage from "
         f"there (dashed).\nRank {last} could as well keep its own output."),
        (f"DualPipeV: {HALF} ranks, and not one of their actions has moved",
         f"Rank {last} keeps the outputs of stage {last}, since stage {HALF} is there, too: micro-batches turn round.\n"
         "Two such pipelines side by side are DualPipe, without the messages through its middle."),
    ][step]  # fmt: skip
    d.text(13, d.height - 25, finding, size=14)
    d.text(13, 66 if step < 2 else 92, why, linespacing=1.3, va="top")
    key(d.figure, 8 / d.height, schedule, x=13 / PAGE)
    d.figure.alt = f"{finding}. {why} ".replace("\n", " ") + "; ".join(
        f"rank {rank}: stages {', '.join(str(schedule.place(rank, chunk).stage) for chunk in (0, 1))}"
        for rank in range(len(schedule))
    )
    return d.figure


def _compared(d: Diagram, times: Times, y: float) -> None:
    """Draw what both schedules need, as a table."""
    columns = (("devices", 250), ("stages per device", 372), ("copies of a stage", 496), ("micro-batches", 596),
               ("time", 640))  # fmt: skip
    for name, x in columns:
        d.text(x, y, name, ha="right", color=MUTED)
    for name, schedule in (("DualPipe", dualpipe(RANKS, MICRO_BATCHES)),
                           ("DualPipeV", dualpipe_v(HALF, MICRO_BATCHES // 2))):  # fmt: skip
        y -= 19
        numbers = (len(schedule), schedule.chunks, schedule.pipes, schedule.micro_batches,
                   f"{float(simulate(schedule, times).length):g}")  # fmt: skip
        d.text(LEFT, y, name, weight="bold")
        for (_, x), number in zip(columns, numbers, strict=True):
            d.text(x, y, f"{number}", ha="right")
