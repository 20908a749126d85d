"""The orders of the schedules are those of PyTorch, of the authors' DualPipe, and of what the words say."""

import pytest
from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

from minids.parallel.schedules import SCHEDULES, Action, Pair, Schedule, dualpipe, dualpipe_v, interleaved, spell, zb1p
from minids.validation import BadValueError

TORCH = {"GPipe": "GPipe", "1F1B": "1F1B", "interleaved": "Interleaved1F1B", "ZBV": "ZBVZeroBubble",
         "DualPipeV": "DualPipeV"}  # fmt: skip


def sizes(name: str, ranks: range = range(1, 7), micro_batches: range = range(1, 16)) -> list[tuple[int, int]]:
    """All sizes that the schedule accepts."""
    found = []
    for size in ((n, m) for n in ranks for m in micro_batches):
        try:
            SCHEDULES[name](*size)
        except BadValueError as refused:
            if refused.name not in ("ranks", "micro_batches"):
                raise
            continue
        found.append(size)
    return found


def in_torch(name: str, ranks: int, micro_batches: int, chunks: int) -> list[list[str]]:
    """torch's order, in which 3F1 is the forward of stage 3 for micro-batch 1."""
    orders = []
    for rank, row in enumerate(get_schedule_ops(name, ranks, micro_batches, chunks, with_comms=False)):
        actions = [a.sub_actions or (a,) for a in row if a is not None and "REDUCE" not in str(a)]
        if name == "1F1B" and rank == ranks - 1:  # torch numbers this rank's forwards from 1 in its display
            actions = [(a._replace(microbatch_index=a.microbatch_index - (a.computation_type.name == "FORWARD")),)
                       for (a,) in actions]  # fmt: skip
        orders.append(["&".join(str(part) for part in parts) for parts in actions])
    return orders


@pytest.mark.parametrize("name", TORCH)
def test_the_order_is_torch_s(name):
    for ranks, micro_batches in sizes(name):
        if name == "1F1B" and micro_batches < ranks:
            continue  # torch refuses these
        schedule = SCHEDULES[name](ranks, micro_batches)
        ours = [["&".join(f"{schedule.place(rank, part.chunk).stage}{part.kind}{part.micro_batch}"
                          for part in action.parts) for action in actions]
                for rank, actions in enumerate(schedule)]  # fmt: skip
        assert ours == in_torch(TORCH[name], ranks, micro_batches, schedule.chunks), (ranks, micro_batches)


# The calls of the authors' `DualPipe.step`, written down while it ran.
AUTHORS = """\
0: F0.0 F0.1 F0.2 F1.0 I1.0 W1.0 F1.1 F0.3&B1.1 F1.2&B0.0 B1.2 F1.3&B0.1 B1.3 I0.2 W0.2 I0.3 W0.3
1: F0.0 F1.0 F0.1 F1.1 F0.2 B1.0 F1.2&B0.0 F0.3&B1.1 F1.3&B0.1 B1.2 B0.2 I1.3 I0.3 W1.3 W0.3
2: F1.0 F0.0 F1.1 F0.1 F1.2 B0.0 F0.2&B1.0 F1.3&B0.1 F0.3&B1.1 B0.2 B1.2 I0.3 I1.3 W0.3 W1.3
3: F1.0 F1.1 F1.2 F0.0 I0.0 W0.0 F0.1 F1.3&B0.1 F0.2&B1.0 B0.2 F0.3&B1.1 B0.3 I1.2 W1.2 I1.3 W1.3"""


def test_dualpipe_is_the_authors_and_its_half_is_dualpipe_v():
    assert str(dualpipe(4, 8)) == AUTHORS
    for ranks, micro_batches in sizes("DualPipe", range(2, 13), range(4, 40)):
        both = dualpipe(ranks, micro_batches)
        assert both[: ranks // 2] == dualpipe_v(ranks // 2, micro_batches // 2)
        for mine, theirs in zip(both, reversed(both), strict=True):  # the mirrored rank, with directions exchanged
            for action, other in zip(mine, theirs, strict=True):
                assert action.parts == tuple(part._replace(chunk=1 - part.chunk) for part in other.parts)


def test_zb1p_is_1f1b_with_the_weight_gradients_later():
    assert [str(rank) for rank in map(words, zb1p(3, 4))] == [
        "F0.0 F0.1 F0.2 I0.0 W0.0 F0.3 I0.1 W0.1 I0.2 W0.2 I0.3 W0.3",
        "F0.0 F0.1 I0.0 F0.2 I0.1 W0.0 F0.3 I0.2 W0.1 I0.3 W0.2 W0.3",
        "F0.0 I0.0 F0.1 I0.1 F0.2 I0.2 W0.0 F0.3 I0.3 W0.1 W0.2 W0.3",
    ]
    for ranks, micro_batches in sizes("ZB1P"):
        without = [[a._replace(kind="B") if a.kind == "I" else a for a in row if a.kind != "W"]
                   for row in zb1p(ranks, micro_batches)]  # fmt: skip
        assert without == SCHEDULES["1F1B"](ranks, micro_batches)


def words(actions: list) -> str:
    return " ".join(map(str, actions))


def test_a_word_numbers_its_micro_batches():
    assert words(spell("F0 F1 F0 I1 F0&B0 I0 W W0 F1&B1")) == "F0.0 F1.0 F0.1 I1.0 F0.2&B0.0 I0.1 W1.0 W0.1 F1.1&B1.1"
    assert spell("F0 F0&B0") == [Action("F", 0, 0), Pair(Action("F", 0, 1), Action("B", 0, 0))]
    assert spell("") == []


@pytest.mark.parametrize("word", ["F", "G0", "F0,B0", "F0&B0&B0", "F0&", "F0&F0", "B0&F0", "W0", "F0 I0 W W0"])
def test_what_is_no_word_is_refused(word):
    with pytest.raises(ValueError, match=r"^letter=.* is not possible: it must be "):
        spell(word)


@pytest.mark.parametrize(("value", "form"), [("placement", ("U", 2, 4)), ("chunks", ("V", 1, 4)),
                                             ("chunks", ("loop", 0, 4)), ("micro_batches", ("loop", 1, 2.0)),
                                             ("micro_batches", ("both ways", 2, 5))])  # fmt: skip
def test_a_schedule_of_another_form_is_refused(value, form):
    with pytest.raises(ValueError, match=f"^{value}=.* is not possible: it must be "):
        Schedule([[], []], *form)
    with pytest.raises(ValueError, match=r"^action='F' is not possible: it must be an Action or a Pair: `spell` reads"):
        Schedule(["F0 B0"], "loop", 1, 1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_knows_its_stages(name):
    ranks, micro_batches = max(sizes(name))
    schedule = SCHEDULES[name](ranks, micro_batches)
    places = schedule.ranks_of()
    assert len(places) == ranks * schedule.chunks == schedule.pipes * schedule.stages
    assert {place.stage for place in places} == set(range(schedule.stages))
    assert schedule.per_pipe * schedule.pipes == micro_batches
    for place, rank in places.items():  # a micro-batch moves to a neighbour, or stays
        after = places.get(place._replace(stage=place.stage + 1), rank)
        assert abs(after - rank) <= 1 or (name == "interleaved" and (after - rank) % ranks == 1)


REFUSED = [
    *[("ranks", name, (bad, 8)) for name in SCHEDULES for bad in (0, -2, 2.0, True)],
    *[("micro_batches", name, (2, bad)) for name in SCHEDULES for bad in (0, -4, 8.0)],
    ("micro_batches", "interleaved", (4, 6)),
    ("micro_batches", "ZBV", (4, 6)),
    ("ranks", "DualPipe", (3, 12)),
    *[("micro_batches", "DualPipe", (4, bad)) for bad in (6, 9)],
    ("micro_batches", "DualPipeV", (4, 7)),
]


@pytest.mark.parametrize(("value", "name", "size"), REFUSED)
def test_impossible_sizes_are_refused(value, name, size):
    with pytest.raises(ValueError, match=f"^{value}=.* is not possible: it must be "):
        SCHEDULES[name](*size)


def test_interleaved_takes_any_number_of_chunks_from_two_on():
    schedule = interleaved(2, 4, chunks=3)
    assert (schedule.stages, schedule.chunks) == (6, 3)
    for bad in (1, 2.0):
        with pytest.raises(ValueError, match=r"^chunks="):
            interleaved(2, 4, chunks=bad)
