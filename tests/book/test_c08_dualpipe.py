"""What the pictures of DualPipe say of its eight steps, of its half and of a pair is what the simulator finds."""

import itertools

import pytest
from legibility import assert_legible
from matplotlib.colors import to_hex
from pictures import title

from minids.book.plots.c08_dualpipe import (
    HALF,
    MICRO_BATCHES,
    RANKS,
    draw_fold,
    draw_steps,
    repeated,
    times_with,
    words_of,
)  # fmt: skip
from minids.book.plots.c08_overlap import BACKWARD, FORWARD, MESSAGES, NEEDS, PAIR, draw_overlap, layer_after_layer
from minids.book.plots.style import PALE
from minids.parallel.schedules import Schedule, dualpipe, dualpipe_steps, spell
from minids.parallel.simulate import Timeline, simulate

pytestmark = pytest.mark.xdist_group("pictures")  # in one process, as other pictures


def gaps(timeline: Timeline, rank: int) -> list[str]:
    """Before which actions the rank is idle."""
    row = timeline.spans[rank]
    return [str(b.action) for a, b in itertools.pairwise(row) if b.start > a.end]


def later(step: int) -> Schedule:
    """DualPipe with the W of one step at the end."""
    words = []
    for rank in range(RANKS):
        parts = words_of(rank)
        kept = parts[step - 1].split().count("W")
        parts[step - 1] = parts[step - 1].replace("W ", "")
        words.append("".join(parts) + "W " * kept)
    return Schedule(map(spell, words), "both ways", 2, MICRO_BATCHES)


def test_the_words_are_dualpipe_s_and_repeat_as_often_as_the_formulas_say():
    H, m = HALF, MICRO_BATCHES // 2
    for rank, actions in enumerate(dualpipe(RANKS, MICRO_BATCHES)):
        words, h = words_of(rank), min(rank, RANKS - 1 - rank)
        assert spell("".join(words)) == actions
        formulas = [2 * (H - 1 - h), h + 1, H - 1 - h, m - 2 * H + h + 1, H - 1 - h, h + 1, H - 1 - h, h + 1]
        assert [repeated(step, word)[0] for step, word in enumerate(words, 1)] == formulas
    assert repeated(6, dualpipe_steps(2, 4, 10)[5]) == (3, "B1 B0 B1\nI0 I1 I0")


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 1])
def test_what_the_sentences_say_of_gaps_is_simulated(overlap):
    times = times_with(overlap)
    usual = simulate(dualpipe(RANKS, MICRO_BATCHES), times)
    for step in (3, 7):
        assert simulate(later(step), times).length == usual.length + 3
    last = ["I0.7", "I0.8", "I0.9"]
    assert not set(last) & set(gaps(usual, 0))
    assert set(last) <= set(gaps(simulate(later(7), times), 0))
    waiting = {"F1.7&B0.3", "F1.8&B0.4", "F1.9&B0.5"} & set(gaps(usual, 0))
    assert len(waiting) == (3 if overlap < 1 else 0)
    assert ("waits before each pair" in draw_steps(5, 0, overlap).alt) == (overlap < 1)
    assert len({row[-1].end for row in usual.spans}) == 1
    assert f"{usual.bubble:.0%} of the time is idle with DualPipe, 26% with 1F1B" in draw_steps(0, 0, overlap).alt


def test_a_step_lights_its_own_actions_only():
    pale = []
    for step in range(1, 9):
        faces = next(c for c in draw_steps(step, 1).axes[1].collections).get_facecolor()
        pale.append(sum(to_hex(face) == PALE.lower() for face in faces))
    total = len(faces)
    assert sum(total - some for some in pale) == total


def test_wherever_the_sliders_stand_the_steps_are_legible():
    for step, rank in zip(range(9), (1, 2, 5, 7, 2, 6, 2, 1, 4), strict=True):
        assert_legible(draw_steps(step, rank, 0.5 * (step % 2)))


def test_the_lower_half_is_a_mirror_image_in_time_too():
    for overlap in (0, 1):
        spans = simulate(dualpipe(RANKS, MICRO_BATCHES), times_with(overlap)).spans
        for mine, theirs in zip(spans, reversed(spans), strict=True):
            assert [(a.start, a.end) for a in mine] == [(b.start, b.end) for b in theirs]
    assert title(draw_fold(2)) == "DualPipeV: 4 ranks, and not one of their actions has moved"


@pytest.mark.parametrize("communication", [0, 0.25, 0.5, 1, 1.25, 2])
def test_in_a_layer_nothing_starts_before_what_it_needs_and_nothing_runs_at_once(communication):
    for order in (FORWARD, BACKWARD, PAIR):
        period, parts = layer_after_layer(order, communication)
        assert period >= max(sum(name not in MESSAGES for name in order),
                             communication * sum(MESSAGES.get(name, 0) for name in order))  # fmt: skip
        for name, (start, _) in parts.items():
            if NEEDS[name] in parts:  # of this layer, or of the one before
                before = period * (order.index(NEEDS[name]) > order.index(name))
                assert start >= parts[NEEDS[name]][1] - before - 1e-9
        for queue in (True, False):
            own = sorted(span for name, span in parts.items() if (name in MESSAGES) == queue)
            assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(own))
    assert [layer_after_layer(order, 1)[0] for order in (FORWARD, BACKWARD, PAIR)] == [5, 5, 6]
    assert_legible(draw_overlap(communication))


@pytest.mark.parametrize(("draw", "values"), [(draw_steps, (9,)), (draw_steps, (0, 8)), (draw_steps, (0, 0, 1.5)),
                                              (draw_fold, (3,)), (draw_overlap, (-1,))])  # fmt: skip
def test_what_does_not_exist_is_refused(draw, values):
    with pytest.raises(ValueError, match="is not possible"):
        draw(*values)
