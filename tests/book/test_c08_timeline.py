"""Schedules in time: boxes lie where the simulated actions do, and gaps have the reasons that are told."""

from collections import Counter
from itertools import pairwise

import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex

from minids.book.plots.c08_gaps import draw_gap, draw_stages, gaps_of, reason
from minids.book.plots.c08_timeline import KINDS, colour, draw_rows, draw_schedule
from minids.book.plots.style import new_figure
from minids.model.config import ModelConfig
from minids.parallel.schedules import SCHEDULES
from minids.parallel.simulate import Times, simulate

SIZES = {"GPipe": (3, 4), "1F1B": (4, 6), "interleaved": (3, 6), "ZB1P": (4, 6), "ZBV": (3, 6), "DualPipe": (4, 8),
         "DualPipeV": (3, 7)}  # fmt: skip
TIMES = Times(F=2, I=3, W=1, pair=4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_area_of_each_colour_is_the_time_of_its_work(name):
    schedule = SCHEDULES[name](*SIZES[name])
    timeline, ax = simulate(schedule, TIMES), new_figure().add_axes((0, 0, 1, 1))
    draw_rows(ax, timeline.spans, TIMES, gap=0)
    boxes, outlines = (c for c in ax.collections if isinstance(c, PolyCollection))
    found, wanted = Counter(), Counter()
    for path, face in zip(boxes.get_paths(), boxes.get_facecolors(), strict=True):
        (x0, y0), (x1, y1) = path.vertices.min(axis=0), path.vertices.max(axis=0)
        found[len(schedule) - 1 - int(y0), to_hex(face)] += (x1 - x0) * (y1 - y0)
    for rank, row in enumerate(timeline.spans):
        for span in row:
            parts, long = span.action.parts, float(span.end - span.start)
            for part in parts:
                shares = {"I": 3 / 4, "W": 1 / 4} if part.kind == "B" else {part.kind: 1}
                for kind, share in shares.items():
                    wanted[rank, to_hex(colour(kind, part.chunk))] += long * share / len(parts)
    assert found == pytest.approx(wanted)
    corners = [path.vertices for path in outlines.get_paths()]
    drawn = sorted((len(schedule) - 1 - int(c[:, 1].min()), c[:, 0].min(), c[:, 0].max()) for c in corners)
    assert drawn == sorted((s.rank, s.start, s.end) for row in timeline.spans for s in row)


@pytest.mark.parametrize("name", SCHEDULES)
def test_gaps_are_the_idle_time_and_each_has_a_reason(name):
    timeline = simulate(SCHEDULES[name](*SIZES[name]), TIMES)
    gaps = gaps_of(timeline)
    for rank, idle in enumerate(timeline.idle):
        assert sum(gap.end - gap.start for gap in gaps if gap.rank == rank) == idle
    for gap in gaps:
        if gap.next is None:
            assert gap.end == timeline.length
            assert "its work is done" in reason(gap)
        else:
            cause = gap.next.cause
            assert (cause.end, gap.next.start) == (gap.end, gap.end)
            assert reason(gap).endswith(f"it must do {gap.next.action} next, and needs {cause.action} of rank "
                                        f"{cause.rank} for it.")  # fmt: skip


def test_a_gap_is_drawn_where_it_is_and_the_chain_before_it_is_outlined():
    chosen = gaps_of(simulate(SCHEDULES["1F1B"](4, 4)))[0]
    frames = draw_gap("1F1B", 0).axes[0].patches
    hatched = [box for box in frames if box.get_hatch()]
    assert {(box.get_x(), box.get_x() + box.get_width()) for box in hatched} == {(chosen.start, chosen.end)}
    outlined = sorted(
        (box.get_x(), box.get_width()) for box in frames if not box.get_hatch() and box.get_linewidth() > 1
    )
    assert outlined == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (6, 2), (8, 2)]
    critical = simulate(SCHEDULES["1F1B"](4, 8)).critical_path()
    assert f"length {critical[-1].end}" in draw_gap(gap=-1, micro_batches=8).alt
    assert all(two.start == one.end for one, two in pairwise(critical))
    for bad, allowed in ((15, "at most 14"), (-2, "at least -1")):
        with pytest.raises(ValueError, match=rf"^gap={bad} is not possible: it must be .*{allowed}"):
            draw_gap(gap=bad)


def test_titles_and_numbers_are_those_of_the_schedule():
    fig = draw_schedule("DualPipe", 4, 8, 1, 1, 1, 1.0, 0.5)
    timeline = simulate(SCHEDULES["DualPipe"](4, 8), Times(pair=2, link=0.5))
    assert fig.alt == f"DualPipe, 4 ranks, 8 micro-batches: {timeline.bubble:.0%} of the time is idle"
    texts = [text.get_text() for text in fig.axes[0].texts]
    assert texts[texts.index("rank 3") + 1 :][:4] == [f"{float(idle):g}" for idle in timeline.idle]
    assert len(set(KINDS.values())) == 3


def test_stages_are_cut_as_the_library_cuts_them():
    texts = [text.get_text() for text in draw_stages(3).axes[0].texts]
    layers = [int(text.split()[1].strip(",")) for text in texts if text.startswith("layer ")]
    assert layers == list(range(ModelConfig.preset("tiny").num_hidden_layers))
    assert texts.index("stage 1") > texts.index("layer 1, MoE")
    with pytest.raises(ValueError, match=r"^stages=5 is not possible: it must be at most 4"):
        draw_stages(5)
