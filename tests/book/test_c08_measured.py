"""The measured timeline above the simulated one: both from the first action on, with what was executed in its place."""

import pytest
from matplotlib.collections import PolyCollection
from pictures import executed

from minids.book.plots.c08_measured import draw_measured, simulated
from minids.parallel.execute import Executed
from minids.parallel.schedules import SCHEDULES
from minids.parallel.simulate import Times, simulate


@pytest.mark.parametrize(("name", "ranks"), [("1F1B", 3), ("DualPipe", 4), ("DualPipeV", 2)])
def test_the_parts_of_a_simulated_pair_follow_one_another_in_its_time(name, ranks):
    schedule, times = SCHEDULES[name](ranks, 8), Times(F=3, I=1, W=2)
    for spans, row in zip(simulate(schedule, times).spans, simulated(schedule, times), strict=True):
        assert [done.action for done in row] == [part for span in spans for part in span.action.parts]
        starts = {done.action: done.start for done in row}
        ends = {done.action: done.end for done in row}
        for span in spans:
            first, *second = span.action.parts
            assert (starts[first], ends[span.action.parts[-1]]) == (span.start, span.end)
            assert all(starts[part] == ends[first] for part in second)


@pytest.mark.parametrize(("slower", "said"), [(1.25, "25% more"), (0.9, "10% less"), (1, "the same")])
def test_both_timelines_begin_at_zero_and_are_compared(slower, said):
    name, schedule, timeline, pace = executed("1F1B", 2, 3, slower)
    late = [[Executed(done.action, done.start + 5, done.end + 5) for done in row] for row in timeline]
    fig = draw_measured(name, schedule, late, pace)
    wanted = float(simulate(schedule, pace).length)
    assert any(text.get_text().endswith(said) for text in fig.texts)
    for ax, length in zip(fig.axes, (slower * wanted, wanted), strict=True):
        outlines = [c for c in ax.collections if isinstance(c, PolyCollection)][1].get_paths()
        corners = [x for path in outlines for x in path.vertices[:, 0]]
        assert (min(corners), max(corners)) == pytest.approx((0, length), abs=1e-9)
        assert ax.get_xlim()[1] == pytest.approx(max(slower, 1) * wanted)
        assert f"{length:.2f} s" in [text.get_text() for text in ax.texts]
    assert not any(character.isdigit() for character in fig.alt.partition(":")[2])  # as stable as the schedule
