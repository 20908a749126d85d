"""Chapter 9's pictures of cost: bars are the bytes, timelines are exact, and every GPU is drawn."""

from contextlib import suppress
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st
from legibility import assert_legible
from matplotlib.colors import to_hex
from pictures import V3, title

from minids.book.plots.c09_bytes import LINKS, MOST_CHOSEN, draw_dispatch_bytes, draw_free_experts, ways
from minids.book.plots.c09_cluster import GREEN, SHARED_TOO, draw_cluster, draw_serving_units
from minids.book.plots.c09_waves import COLORS, LANE, STEADY, Task, chain, draw_waves, period, run
from minids.book.plots.style import INK, tint
from minids.cost.dispatch import expected_rows
from minids.cost.precision import most_copies

BF16, FP8 = 2 * 7168, 7168 + 56

# ---------------------------------------------------------------------------------------------------
# Bytes


def test_the_bars_are_the_times_of_the_bytes_and_each_measure_saves_between_nodes():
    fig, found = draw_dispatch_bytes(V3), ways(V3, 8)
    for ax, direction in zip(fig.axes, ("dispatch", "combine"), strict=True):
        sizes = [size for both in found.values() for size in both[direction]]
        times = [1e6 * size / speed for size, speed in zip(sizes, (50e9, 160e9) * len(found), strict=True)]
        assert [bar.get_width() for bar in ax.patches] == pytest.approx(times)
        written = [text.get_text().split(" µs")[0] for text in ax.texts]
        assert written == [f"{time:.2f}" for time in times]
        assert [to_hex(bar.get_facecolor()).upper() for bar in ax.patches] == [*LINKS.values()] * len(found)
        between = sizes[::2]
        assert between == sorted(between, reverse=True)
        for way, size in zip(
            ("per expert", "per rank", "two hops"), zip(between, sizes[1::2], strict=True), strict=False
        ):
            assert size == pytest.approx([rows * BF16 for rows in expected_rows(256, 8, 8, 8, way)])
    limited, last = found["+ at most 4 nodes"]["dispatch"], found["+ dispatch in FP8"]
    assert 3.9 * 7 / 8 * BF16 < limited.between_nodes < most_copies(V3)["between nodes"] * 7 / 8 * BF16
    assert last["dispatch"] == pytest.approx([size * FP8 / BF16 for size in limited])
    assert last["combine"] == limited
    assert title(fig) == "Between nodes, a token costs 74.5 KB instead of 201 KB, there and back"


@pytest.mark.parametrize("nodes", range(1, 9))
def test_the_time_is_that_of_the_slower_link(nodes):
    fig = draw_free_experts(V3, nodes)
    assert_legible(fig)
    (ax,) = fig.axes
    slower = ax.lines[0]
    for k in range(1, MOST_CHOSEN + 1):
        expected = 1e6 * FP8 * max(min(k, nodes) / 50e9, k / 160e9)
        assert np.interp(k, slower.get_xdata(), slower.get_ydata()) == pytest.approx(expected)
    assert f"up to {3.2 * nodes:g} experts take the time of {nodes}; this model has 8" in title(fig)
    assert ax.get_ylim() == draw_free_experts(V3).axes[0].get_ylim()


# ---------------------------------------------------------------------------------------------------
# Waves


@st.composite
def task_lists(draw) -> list[Task]:
    tasks = []
    for name in range(draw(st.integers(1, 9))):
        needs = draw(st.sets(st.integers(0, name - 1), max_size=3)) if name else ()
        tasks.append(Task(name, draw(st.sampled_from("ab")), draw(st.integers(1, 4)), tuple(needs)))
    return tasks


def ticked(tasks: list[Task]) -> dict:
    """Tick by tick: a free resource begins the first task of its queue once all that it needs has ended."""
    spans, now = {}, 0
    while len(spans) < len(tasks):
        for resource in "ab":
            queue = [task for task in tasks if task.resource == resource]
            begun = [task for task in queue if task.name in spans]
            busy = any(spans[task.name][1] > now for task in begun)
            if len(begun) < len(queue) and not busy:
                task = queue[len(begun)]
                if all(need in spans and spans[need][1] <= now for need in task.needs):
                    spans[task.name] = now, now + task.duration
        now += 1
    return spans


@examples(100)
@given(task_lists())
def test_tasks_run_as_they_do_tick_by_tick(tasks):
    assert run(tasks) == ticked(tasks)


def test_a_task_cannot_need_one_that_comes_later():
    with pytest.raises(ValueError, match=r"^needs='b' is not possible: it must be the name of a task before a\.$"):
        run([Task("a", "x", 1, ("b",)), Task("b", "x", 1)])


def in_order(products: list[Task], messages: list[Task]) -> list[Task]:
    """Both queues as one list, each message as early as its order and its need allow."""
    mixed = [*products]
    for i, message in enumerate(messages):
        before = {message.needs[0], *(earlier.name for earlier in messages[:i])}
        mixed.insert(max(n for n, task in enumerate(mixed) if task.name in before) + 1, message)
    return mixed


@pytest.mark.parametrize("waves", [1, 2, 3])
@pytest.mark.parametrize("communication", [Fraction(0), Fraction(1, 4), Fraction(1, 2)])
def test_while_messages_take_no_longer_than_the_experts_no_other_order_of_them_is_faster(waves, communication):
    tasks, lengths = chain(1, 1, waves, communication), []
    products, messages = ([task for task in tasks if task.resource == lane] for lane in ("computing", "messages"))
    for order in permutations(messages):
        with suppress(ValueError):  # an order in which a wave is sent back before it has arrived
            lengths.append(max(end for _, end in run(in_order(products, order)).values()))
    length = max(end for _, end in run(tasks).values())
    assert min(lengths) == length == 2 + 2 * communication / waves
    assert waves == 1 or communication == 0 or max(lengths) > length


@examples(40)
@given(st.integers(1, 16), st.fractions(0, 1, max_denominator=20), st.sampled_from([(1, 1), (2, 1), (1, 0)]))
def test_a_layer_takes_as_long_however_long_the_chain_and_the_title_says_the_wait(waves, communication, kind):
    micro_batches, waves = kind[0], kind[1] or waves
    tasks = chain(4 * STEADY + 1, micro_batches, waves, communication)
    spans = run(tasks)
    assert period(spans) == period(spans, 2 * STEADY) >= 2 * max(1, communication)
    work = {
        lane: sum(t.duration for t in tasks if t.resource == lane and t.name[1] == 0) for lane in set(LANE.values())
    }
    assert work == {"computing": 2, "messages": 2 * communication}
    if (micro_batches, waves) == (1, 1):
        assert period(spans) == 2 + 2 * communication


@pytest.mark.parametrize(("waves", "communication"), [(1, 0.5), (4, 0.5), (16, 1.0), (3, 0.0)])
def test_the_lit_layer_is_drawn_whole_and_the_axis_stays(waves, communication):
    fig = draw_waves(waves, communication)
    assert_legible(fig)
    ax = fig.axes[0]
    unit = (648 - 10 - 92) / 4
    patches = [(to_hex(p.get_facecolor()).upper(), p.get_width()) for p in ax.patches]
    for what, expected in (("attention", 1), ("experts", 1), ("dispatch", 2 * communication / 3),
                           ("combine", 4 * communication / 3)):  # fmt: skip
        drawn = [width / unit for color, width in patches if color == COLORS[what].upper()]
        assert sum(drawn) == pytest.approx(3 * expected)
    assert f"messages {communication:g} × both together" in fig.alt
    numbers = [text.get_text().rpartition(" ")[2] for text in ax.texts]
    assert len({numbers.count(str(wave)) for wave in range(3, waves + 1)}) <= 1  # 1 and 2 are micro-batches, too
    alone = communication / (1 + communication)
    assert title(fig).startswith(f"Computing waits {alone:.0%} of the time; with two micro-batches ")
    if communication <= 0.5:
        in_waves = 2 * communication / waves
        assert f"with {waves} wave{'s' * (waves > 1)} {in_waves / (2 + in_waves):.0%}" in title(fig)


def test_other_waves_are_refused():
    with pytest.raises(ValueError, match=r"^waves=17 .* at least 1 and at most 16"):
        draw_waves(17)
    with pytest.raises(ValueError, match=r"^communication=1\.5 is not possible: it must be a number from 0 to 1\.$"):
        draw_waves(4, 1.5)


# ---------------------------------------------------------------------------------------------------
# GPUs


def cells(fig) -> list[list[str]]:
    """The colours of the small boxes of each group."""
    return [[to_hex(face).upper() for face in group.get_facecolors()] for group in fig.axes[0].collections]


def test_every_gpu_of_the_cluster_is_drawn():
    fig = draw_cluster()
    (gpus,) = cells(fig)
    assert len(gpus) == 2048
    counts = {color: gpus.count(color.upper()) for color in (GREEN, tint(GREEN, 0.45), INK)}
    assert list(counts.values()) == [64, 64 - 1, 16]  # a set, the other one without a GPU that is dark, every rank
    texts = [text.get_text() for text in fig.axes[0].texts]
    assert [f"experts {n} to {n + 3}" for n in range(224, 256, 4)] == [
        text for text in texts if text.startswith("experts ")
    ]
    assert title(fig) == "2,048 GPUs: 16 pipeline stages of 128; each has its experts twice, on 64 GPUs each time"


def test_every_gpu_of_the_units_is_drawn():
    fig = draw_serving_units()
    assert [len(gpus) for gpus in cells(fig)] == [32, 32, 320, 144]
    assert [gpus.count(SHARED_TOO.upper()) for gpus in cells(fig)] == [0, 0, 64, 0]
    texts = [text.get_text() for text in fig.axes[0].texts]
    for said in ("32 × 9 = 288 places", "320 × 1 = 320 places", "144 × 2 = 288 places", "= 256 routed + 32 redundant"):
        assert said in texts
    assert title(fig) == "Decoding: 320 GPUs with 1 expert each, later 144 with 2 and the shared one"
