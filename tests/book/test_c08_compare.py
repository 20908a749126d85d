"""The four waits of DualPipe are its formula, and schedules are compared at equal work."""

import re

import pytest
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st

from minids.book.plots.c08_compare import (
    COUNTS,
    RANKS,
    compared,
    draw_bubble_share,
    draw_peak_memory,
    draw_waits,
    memory,
    waits,
)
from minids.parallel.schedules import SCHEDULES, dualpipe
from minids.parallel.simulate import Times, peak_activations, simulate


@examples(30)
@given(st.sampled_from([4, 6, 8]), st.integers(1, 9), st.integers(0, 9), st.integers(0, 9), st.fractions(0, 1))
def test_the_four_waits_of_a_middle_rank_are_as_written(ranks, F, I, W, overlap):
    W, k = min(W, I), ranks // 2 - 1
    times = Times(F, I, W, F + I + W - overlap * min(F, I + W))
    timeline = simulate(dualpipe(ranks, 2 * ranks + 4), times)
    found = [sum(end - start for start, end in group) for group in waits(timeline, k)]
    assert found == [k * F, max(0, k * I - (k + 1) * F), k * (times.pair - times.B), k * (I - W)]
    assert sum(found) == timeline.idle[k]


def test_the_picture_says_where_the_formula_fails():
    assert "Rank 3 waits 3 + 0 + 3 + 0 = 6; the report’s formula gives 6" in draw_waits(F=1, I=1, W=1).alt
    longer = simulate(dualpipe(8, 20), Times(1, 3, 1))
    assert f"= {longer.idle[3]}; the report’s formula gives 18" in draw_waits(F=1, I=3, W=1).alt
    texts = [text.get_text() for text in draw_waits(F=1, I=1, W=3).texts]
    assert any("the formula needs W ≤ I" in text for text in texts)


@pytest.mark.parametrize("name", SCHEDULES)
def test_all_schedules_have_the_same_work_and_memory_is_of_the_same_model(name):
    for micro_batches in COUNTS[:2]:
        timeline = compared(name, micro_batches)
        work = [sum(span.end - span.start for span in row) for row in timeline.spans]
        assert work == pytest.approx([3 * micro_batches] * RANKS)
        gain = sum(len(a.parts) > 1 for row in SCHEDULES[name](RANKS, micro_batches) for a in row)
        part = RANKS / SCHEDULES[name](RANKS, micro_batches).stages
        less = [sum(span.end - span.start for span in row) for row in compared(name, micro_batches, overlap=1).spans]
        assert sum(work) - sum(less) == pytest.approx(gain * part)
    stages = 16 if name in ("interleaved", "ZBV", "DualPipeV") else 8
    activations, parameters = memory(name, 16)
    assert activations == max(peak_activations(SCHEDULES[name](8, 16))) * 8 / stages
    assert parameters == (2 if name == "DualPipe" else 1)


def test_the_numbers_of_the_comparisons_are_the_simulated_ones():
    for overlap, link in ((0, 0), (1, 0.25)):
        said = draw_bubble_share(overlap, link).alt
        lengths = {name: compared(name, 128, overlap, link).length / 384 for name in SCHEDULES}
        for name, length in lengths.items():
            assert f"{name} {compared(name, 128, overlap, link).bubble:.2%}, {length:.3f}" in said
        least = re.match(r"F&B = .*: (\w+) is idle least", said)[1]
        assert compared(least, 128, overlap, link).bubble == min(
            compared(n, 128, overlap, link).bubble for n in lengths
        )
    assert "; DualPipe 5.9%, 9, 2;" in draw_peak_memory(32).alt
    with pytest.raises(ValueError, match=r"^micro_batches=20 is not possible: it must be 16, 32, 64, 128"):
        draw_peak_memory(20)
