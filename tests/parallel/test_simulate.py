"""The simulator against networkx' longest paths, the report's formulas, and the reasons for what cannot run."""

import re
from fractions import Fraction
from itertools import pairwise

import networkx as nx
import pytest
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st

from minids.cost.pipeline import published_pipeline_cost
from minids.parallel.schedules import SCHEDULES, Action, Pair, Schedule, dualpipe, dualpipe_v, one_f_one_b, spell
from minids.parallel.simulate import IllegalSchedule, Times, idle_form, peak_activations, simulate

durations = st.fractions(0, 4, max_denominator=6)
times = st.builds(Times, F=durations, I=durations, W=durations, pair=st.none() | durations, link=durations)
SMALL = {"GPipe": (3, 4), "1F1B": (4, 6), "interleaved": (3, 6), "ZB1P": (4, 6), "ZBV": (3, 6), "DualPipe": (4, 8),
         "DualPipeV": (3, 7)}  # fmt: skip


def graph(schedule: Schedule, t: Times) -> nx.DiGraph:
    """Every action's start and end; the weight of an edge is how long one must come after the other."""
    g, made = nx.DiGraph(), {}
    for rank, actions in enumerate(schedule):
        for i, action in enumerate(actions):
            g.add_edge((rank, i, "start"), (rank, i, "end"), weight=t.of(action))
            if i:
                g.add_edge((rank, i - 1, "end"), (rank, i, "start"), weight=0)
            for part in action.parts:
                made[part.kind.replace("I", "B"), *schedule.place(rank, part.chunk), part.micro_batch] = rank, i
    for (kind, pipe, stage, number), (rank, i) in made.items():
        needs = {"F": [("F", stage - 1)], "B": [("B", stage + 1), ("F", stage)], "W": [("B", stage)]}[kind]
        for before, where in needs:
            if (before, pipe, where, number) in made:
                other, j = made[before, pipe, where, number]
                if (other, j) != (rank, i):
                    g.add_edge((other, j, "end"), (rank, i, "start"), weight=t.link if other != rank else 0)
    return g


@examples(60)
@given(st.sampled_from(list(SMALL)), times)
def test_the_length_is_that_of_the_longest_path(name, t):
    schedule = SCHEDULES[name](*SMALL[name])
    timeline = simulate(schedule, t)
    assert timeline.length == nx.dag_longest_path_length(graph(schedule, t))
    path = timeline.critical_path()
    assert (path[0].start, path[-1].end) == (0, timeline.length)
    for one, two in pairwise(path):
        assert two.start == one.end + (t.link if one.rank != two.rank else 0)
    for rank, spans in enumerate(timeline.spans):
        assert [span.action for span in spans] == schedule[rank]
        assert timeline.idle[rank] == timeline.length - sum(map(t.of, schedule[rank]))


@examples(60)
@given(st.data())
def test_a_deadlock_is_found_where_the_graph_has_a_cycle(data):
    schedule = one_f_one_b(3, 2)
    for actions in schedule:
        actions[:] = data.draw(st.permutations(actions))
    cyclic = not nx.is_directed_acyclic_graph(graph(schedule, Times()))
    try:
        simulate(schedule)
    except IllegalSchedule:
        assert cyclic
    else:
        assert not cyclic


# The corners of the regions in which the formulas hold, as (F, I, W, pair, link).
ALL = [(1, 0, 0, 1), (0, 1, 0, 1), (0, 0, 1, 1)]
NO_LONGER_W = [(1, 0, 0, 1), (0, 1, 0, 1), (1, 1, 1, 3)]  # W at most F and I
EQUAL = [(1, 1, 0, 1), (1, 1, 0, 2), (1, 1, 1, 2), (1, 1, 1, 3)]  # F = I >= W, and a pair from I + W to F + I + W


def corners(*values: tuple) -> list[Times]:
    return [Times(*value) for value in values]


@pytest.mark.parametrize("ranks", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("times", [1, 2, 5])
def test_idle_time_of_gpipe_1f1b_and_zb1p_is_the_report_s(ranks, times):
    k, m = ranks - 1, times * ranks
    for name in ("GPipe", "1F1B"):
        for idle in idle_form(SCHEDULES[name](ranks, m), corners(*ALL)):
            assert (idle["F"], idle["I"], idle["W"]) == (k, k, k)
    for idle in idle_form(SCHEDULES["GPipe"](ranks, m), corners(*ALL, (0, 0, 0, 0, 1))):
        assert idle["link"] == 2 * k
    for idle in idle_form(SCHEDULES["ZB1P"](ranks, max(m, 2 * ranks - 1)), corners(*NO_LONGER_W)):
        assert (idle["F"], idle["I"], idle["W"]) == (k, k, -k)


@pytest.mark.parametrize("ranks", [4, 6, 8, 12])
@pytest.mark.parametrize("extra", [0, 2, 10])
def test_idle_time_of_dualpipe_is_the_report_s_where_f_is_i_and_what_it_is_elsewhere(ranks, extra):
    k, schedule = ranks // 2 - 1, dualpipe(ranks, 2 * ranks + extra)

    def middle(*values: tuple) -> dict:
        idle = idle_form(schedule, corners(*values))[ranks // 2 - 1]
        return {name: idle[name] for name in ("F", "I", "W", "pair") if idle[name]}

    report = {"F": k, "W": -2 * k, "pair": k}  # F&B + B - 3W with F = B - W
    assert middle(*EQUAL) == report
    assert middle(*EQUAL, (1, 0, 0, 1)) == report  # F >= I >= W: F instead of I
    longer = [(k, k + 1, w, pair) for w in (0, k + 1) for pair in (k + 1 + w, 2 * k + 1 + w)]
    assert middle(*EQUAL, *longer) == report  # up to I = (1 + 1/k) F, the same
    assert middle(*longer, (0, 1, 0, 1), (0, 1, 1, 2)) == {"F": -1, "I": k, "W": -2 * k, "pair": k}  # beyond
    assert idle_form(schedule, corners(*EQUAL, *longer, (0, 1, 0, 1))) is None
    folded = idle_form(dualpipe_v(ranks // 2, ranks + extra // 2), corners(*EQUAL))[-1]
    assert {name: folded[name] for name in report} == report
    assert len(set(simulate(schedule, Times(2, 2, 1)).idle)) == 1  # without a gain by overlap, of all ranks


def test_the_published_example_with_sixteen_stages():
    for name, pair, idle in (("1F1B", None, 45), ("ZB1P", None, 15), ("DualPipe", None, 14), ("DualPipe", 2, 7)):
        timeline = simulate(SCHEDULES[name](16, 64), Times(pair=pair))
        assert max(timeline.idle) == idle
    assert simulate(dualpipe_v(8, 32), Times(pair=2)).idle[-1] == 7


@pytest.mark.parametrize("ranks", [2, 4, 6, 8])
def test_peak_activations_are_the_report_s(ranks):
    m = 4 * ranks
    assert peak_activations(SCHEDULES["GPipe"](ranks, m)) == [m] * ranks
    assert peak_activations(SCHEDULES["1F1B"](ranks, m)) == list(range(ranks, 0, -1))
    assert peak_activations(SCHEDULES["ZB1P"](ranks, m)) == [ranks] * ranks
    assert peak_activations(dualpipe(ranks, m)) == [ranks + 1] * ranks
    assert peak_activations(dualpipe_v(ranks // 2, m)) == [ranks + 1] * (ranks // 2)


@pytest.mark.parametrize("name", ["1F1B", "ZB1P", "DualPipe", "DualPipeV"])
@pytest.mark.parametrize("stages", [2, 4, 8])
def test_the_report_s_table_is_what_is_simulated(name, stages):
    t = Times(F=3, I=3, W=2, pair=7)
    schedule = SCHEDULES[name](stages // 2 if name == "DualPipeV" else stages, 4 * stages)
    idle = simulate(schedule, t).idle
    longest = idle[stages // 2 - 1] if name.startswith("Dual") else max(idle)
    found = (longest, schedule.chunks, max(peak_activations(schedule)), len(schedule))
    assert found == published_pipeline_cost(name, stages, t.F, t.B, t.W, t.pair)


@pytest.mark.parametrize(
    ("value", "method", "stages"), [("method", "GPipe", 4), ("stages", "DualPipe", 5), ("stages", "DualPipe", 0)]
)
def test_what_is_not_in_the_table_is_refused(value, method, stages):
    with pytest.raises(ValueError, match=f"^{value}=.* is not possible: it must be "):
        published_pipeline_cost(method, stages, 1, 2, 1, 3)


def schedule_of(*words: str) -> Schedule:
    return Schedule(map(spell, words), "loop", 1, 2)


ILLEGAL = [
    (("F0 F0 B0 B0", "F0 B0"), "rank 1: F0.1 is missing."),
    (("F0 F0 B0", "F0 F0 B0 B0"), "rank 0: B0.1, or I and W, is missing."),
    (("F0 F0 I0 B0", "F0 F0 B0 B0"), "rank 0: W0.0 is missing."),
    (("F0 I0 W0 F0 I0 W0", "F0 F0 I0 W0 I0 W0"), "a deadlock: rank 0 waits before I0.0 for I0.0 of rank 1, "
     "rank 1 waits before F0.1 for F0.1 of rank 0."),
    (("F0 F0 B0 B0 F0", "F0 F0 B0 B0"), "rank 0: F0.2 does not exist: there are F, B, I, W of chunks 0 to 0 and "
     "micro-batches 0 to 1."),
    (("F0 F0 B0 B0", "F0 B0 B0 F0"), "rank 1: B0.1 comes before F0.1, which it needs."),
    (("F0 F1 B0 B0", "F0 F0 B0 B0"), "rank 0: F1.0 does not exist: there are F, B, I, W of chunks 0 to 0 and "
     "micro-batches 0 to 1."),
    (("F0 F0 B0 B0", "F0&B0 F0&B0"), "rank 1: B0.0 comes before F0.0, which it needs."),
    (("F0 B0 F0 B0", "F0 F0 B0 B0"), "a deadlock: rank 0 waits before B0.0 for B0.0 of rank 1, "
     "rank 1 waits before F0.1 for F0.1 of rank 0."),
]  # fmt: skip


def test_what_is_no_action_or_no_pair_is_told():
    f, b = Action("F", 0, 0), Action("B", 0, 0)
    for wrong, reason in ((f._replace(kind="FB"), "FB0.0 does not exist: there are"),
                          (Pair(b, f), "B0.0&F0.0 is not possible: a pair is an F and a B.")):  # fmt: skip
        with pytest.raises(IllegalSchedule, match=f"^rank 0: {re.escape(reason)}"):
            simulate(Schedule([[wrong]], "loop", 1, 1))


@pytest.mark.parametrize(("words", "reason"), ILLEGAL)
def test_what_no_pipeline_can_run_is_told_in_a_sentence(words, reason):
    with pytest.raises(IllegalSchedule) as error:
        simulate(schedule_of(*words))
    assert str(error.value) == reason


def test_what_is_done_twice_or_before_its_need_is_told():
    schedule = schedule_of("F0 F0 I0 W0 B0", "F0 F0 B0 B0")
    schedule[0].append(Action("B", 0, 0))
    for order, reason in (((0, 1, 3, 2, 4), "W0.0 comes before I0.0, which it needs."),
                          ((0, 0, 1, 2, 3, 4), "F0.0 is done twice."),
                          ((0, 1, 2, 2, 3, 4), "I0.0 is done twice."),
                          ((0, 1, 2, 3, 4, 5), "B0.0 is done twice.")):  # fmt: skip
        wrong = Schedule([[schedule[0][i] for i in order], schedule[1]], "loop", 1, 2)
        with pytest.raises(IllegalSchedule, match=f"^rank 0: {reason}$"):
            simulate(wrong)


@pytest.mark.parametrize("bad", [-1, float("inf"), float("nan"), "1"])
def test_impossible_durations_are_refused(bad):
    for name in ("F", "W", "pair", "link"):
        with pytest.raises(ValueError, match=f"^{name}=.* is not possible: it must be "):
            Times(**{name: bad})
    assert simulate(one_f_one_b(2, 2), Times(0, 0, 0)).bubble == 0
    assert simulate(one_f_one_b(4, 4)).bubble == pytest.approx(3 / 7)
    assert simulate(one_f_one_b(2, 2), Times(F=Fraction(1, 3))).length == Fraction(1, 3) * 3 + 6
