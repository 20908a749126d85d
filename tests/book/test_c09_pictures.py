"""What the pictures of expert parallelism draw, against counts: ways of tokens, rows between ranks, loads of GPUs."""

import itertools
from collections import Counter

import numpy as np
import pytest
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st
from legibility import assert_legible
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from pictures import GRIDS, KEPT, arguments, picture, title

from minids.book.plots.c09_journey import COPIES, LINKS, RESULTS, ROWS, VIA, draw_journey
from minids.book.plots.c09_layouts import MOMENTS, WEIGHTS, draw_grid, draw_kept
from minids.book.plots.c09_packing import Hand, apart, draw_packing_by_hand
from minids.book.plots.c09_placement import by_eplb, draw_placement, in_order, loads_of, over_mean
from minids.book.plots.c09_traffic import MARK, busiest_of, draw_traffic
from minids.cost.traffic import rows_between_nodes, rows_inside_nodes, traffic
from minids.parallel.eplb import rebalance_experts
from minids.parallel.layout import Layout

pytestmark = pytest.mark.xdist_group("pictures")  # in one process, so that each is drawn once

# ---------------------------------------------------------------------------------------------------
# The journey

CHOICES = st.integers(1, 4).flatmap(
    lambda k: st.lists(
        st.lists(st.lists(st.integers(0, 7), min_size=k, max_size=k, unique=True), min_size=1, max_size=2),
        min_size=4, max_size=4,
    )
)  # fmt: skip


def letters(fig, low: float, high: float) -> list[tuple[str, float]]:
    """Tokens written between two heights, with their places."""
    found = [(text.get_text(), text.get_position()) for text in fig.axes[0].texts]
    return sorted((name, x) for name, (x, y) in found if name in "abcdefgh" and low <= y <= high)


def counted(choices: list, hops: int) -> list[int]:
    """How many copies are sent over each link, in the order of LINKS."""
    rows = traffic(choices, 8, 2, "two hops" if hops == 2 else "per rank")
    across, inside = rows_between_nodes(rows, 2), rows_inside_nodes(rows, 2)
    return [across, inside, rows.sum() - across - inside]


@examples(12)
@given(CHOICES, st.sampled_from([1, 2]), st.data())
def test_every_copy_is_a_way_in_the_colour_of_its_link_and_each_comes_back(choices, hops, data):
    tokens = [[t] for of_rank in choices for t in of_rank]
    home = [rank for rank, of_rank in enumerate(choices) for _ in of_rank]
    token = data.draw(st.integers(0, len(tokens) - 1))
    fig = draw_journey(choices, hops, token, choices)
    assert_legible(fig)
    ways = [patch for patch in fig.findobj(PathPatch) if not patch.get_fill() or patch.get_facecolor()[3] == 0]
    lit = Counter(to_hex(way.get_edgecolor()) for way in ways if way.get_linewidth() > 2)
    alone = [tokens[token] if rank == home[token] else np.zeros((0, 1), int) for rank in range(4)]
    assert [lit[color.lower()] for color in LINKS.values()] == [2 * n for n in counted(alone, hops)]
    assert len(ways) == 2 * sum(counted(choices, hops))
    key = [text.get_text() for text in fig.axes[0].texts if text.get_text().endswith(tuple(LINKS))]
    assert key == [f"{n} {name}" for n, name in zip(counted(choices, hops), LINKS, strict=True)]
    rows, copies = letters(fig, ROWS - 20, ROWS + 20), letters(fig, COPIES, COPIES)
    ranks = [{expert // 2 for expert in chosen} for (chosen,) in tokens]
    assert [name for name, _ in rows] == ["abcdefgh"[t] for t, (chosen,) in enumerate(tokens) for _ in chosen]
    assert [name for name, _ in copies] == ["abcdefgh"[t] for t, there in enumerate(ranks) for _ in there]


def test_copies_keep_their_place_when_a_hop_is_added():
    one, two = (picture(f"journey: {hops}, 3") for hops in (1, 2))
    assert not letters(one, VIA, VIA)
    assert letters(two, VIA, VIA)
    for height in (COPIES, ROWS + 6, RESULTS):
        assert letters(one, height, height) == letters(two, height, height) != []


def test_the_title_counts_the_copies_that_cross():
    choices = arguments("journey: 1, 0")[0]
    (one, *_), (two, *_) = (counted(choices, hops) for hops in (1, 2))
    assert one > two
    assert title(picture("journey: 1, 0")).endswith(f"one for each rank: {one} to the other node")
    assert title(picture("journey: 2, 0")) == f"In two hops, {two} copies cross to the other node instead of {one}"
    assert "0 copies cross to the other node, as many as in one hop" in title(
        draw_journey([[[0, 1]]] * 2 + [[[6, 7]]] * 2, 2)
    )
    assert "From rank 1 it is sent to rank 1, from there to ranks 0 and 1, and to rank 3, from there to rank 2" in (
        draw_journey([[[0]], [[0, 2, 4]], [[0]], [[0]]], 2, 1).alt
    )


# ---------------------------------------------------------------------------------------------------
# Traffic


def test_cells_have_their_numbers_and_the_busiest_rank_is_outlined():
    matrices, _ = arguments("traffic: two")
    panels = [ax for ax in picture("traffic: two").axes if ax.texts]
    for ax, rows in zip(panels, matrices.values(), strict=True):
        written = {tuple(map(int, text.get_position()[::-1])): int(text.get_text()) for text in ax.texts}
        assert written == {at: n for at, n in np.ndenumerate(rows) if at[0] != at[1]}
        (frame,) = [patch for patch in ax.findobj(Rectangle) if to_hex(patch.get_edgecolor()) == MARK.lower()]
        assert (frame.get_x(), frame.get_width()) == (busiest_of(rows).rank - 0.5, 1)
    scales = {ax.images[0].get_clim() for ax in panels}
    away = [rows[~np.eye(8, dtype=bool)] for rows in matrices.values()]
    assert scales == {(0, max(map(np.max, away)))}


def test_the_busiest_rank_is_found_without_what_it_keeps():
    rows = np.array([[90, 1, 2], [3, 0, 4], [5, 6, 0]])
    assert busiest_of(rows) == (2, "sends", 11, pytest.approx(11 / 7))
    assert busiest_of(rows.T) == (2, "receives", 11, pytest.approx(11 / 7))
    drawn = draw_traffic({"one": rows, "other": rows.T}, 1)
    assert title(drawn) == "21 rows are sent between nodes"
    assert "one: 21 between nodes, 0 inside nodes, rank 2 sends most, 11, 1.57 times the mean" in drawn.alt


@pytest.mark.parametrize(("variant", "said"), [
    ("three", "Between nodes: from 388 down to 233 rows, a factor of 1.7"),
    ("four", "Between nodes: from 374 up to 511 rows, a factor of 1.4"),
    ("one node", "Between ranks: from 388 down to 348 rows, a factor of 1.1"),
    ("skewed", "Busiest rank: from 1.0 up to 2.4 times the mean of all ranks"),
])  # fmt: skip
def test_the_title_says_how_much_the_rows_differ_or_else_the_busiest_ranks(variant, said):
    assert title(picture(f"traffic: {variant}")) == said


def test_where_ranks_have_about_the_same_none_is_marked():
    for variant, marked in (("even", False), ("skewed", True)):
        fig = picture(f"traffic: {variant}")
        edges = {to_hex(patch.get_edgecolor()) for patch in fig.findobj(Rectangle)}
        assert (MARK.lower() in edges) == marked == any("× the mean" in text.get_text() for text in fig.texts)


# ---------------------------------------------------------------------------------------------------
# Layouts


@pytest.mark.parametrize("shape", GRIDS)
def test_ranks_of_a_row_are_a_stage_and_a_letter_stands_for_the_holders_of_the_same_experts(shape):
    ranks, pp, ep = shape
    layout, fig = Layout(ranks, pp=pp, ep=ep), picture(f"grid: {ranks}, {pp}, {ep}")
    texts = [text for text in fig.axes[0].texts if text.get_text().startswith(("rank ", "part ", "experts "))]
    cells = [texts[i : i + 3] for i in range(0, len(texts), 3)]
    assert [cell[0].get_text() for cell in cells] == [f"rank {rank}" for rank in range(ranks)]
    columns, rows = (sorted({cell[0].get_position()[axis] for cell in cells}) for axis in (0, 1))
    letters = [cell[2].get_text() for cell in cells]
    colors = [to_hex(box.get_facecolor()) for box in fig.findobj(FancyBboxPatch)]
    for rank, (name, part, letter) in enumerate(cells):
        stage, place = layout.coordinates(rank)
        x, y = name.get_position()
        assert (rows[::-1].index(y), columns.index(x)) == (stage, place)
        assert part.get_text() == f"part {place}"
        same = layout.holders((stage,), rank, is_expert=True)
        assert tuple(other for other in range(ranks) if letters[other] == letter.get_text()) == same
        assert len({colors[other] for other in same}) == 1
        assert pp > 4 or colors.count(colors[rank]) == len(same)


def test_the_title_of_a_layout_says_where_an_expert_is():
    titles = {shape: title(picture("grid: {}, {}, {}".format(*shape))) for shape in GRIDS}
    assert titles[8, 2, 2] == "8 ranks: 2 stages; each expert is computed on 2 of the 4 ranks of a stage"
    assert titles[6, 3, 1] == "6 ranks: 3 stages; each expert is computed on both ranks of a stage"
    assert titles[4, 1, 2] == "4 ranks: each expert is computed on 2 of them"


def test_bars_are_shares_of_three_numbers_for_each_weight():
    fig, whole = picture("kept: tiny"), arguments("kept: tiny")[1]
    (ax,), below = fig.axes, [0] * 16
    for color, part in ((WEIGHTS, 0), (MOMENTS, 1)):
        bars = [bar for bar in ax.patches if to_hex(bar.get_facecolor()) == color.lower()]
        assert [bar.get_height() * 3 * whole for bar in bars] == pytest.approx(
            [n for both in KEPT.values() for n in both[part]]
        )
        assert [bar.get_y() for bar in bars] == pytest.approx(below)
        below = [bar.get_height() for bar in bars]
    assert ax.lines[0].get_ydata() == [1 / 4, 1 / 4]
    most, least = (211_568 + 178_803) / (3 * whole), (70_320 + 37_893) / (3 * whole)
    said = f"A rank keeps {least:.0%} to {most:.0%} of what one process keeps; the most with pp=2, dp=2"
    assert title(fig) == said
    assert title(picture("kept: one")) == "Each rank keeps 50% of what one process keeps"


# ---------------------------------------------------------------------------------------------------
# Placement


def bars(ax) -> list[tuple[int, float, str]]:
    """GPU, load and colour of each piece; nodes are half a GPU apart."""
    (boxes,) = [c for c in ax.collections if isinstance(c, PolyCollection)]
    found = [path.vertices for path in boxes.get_paths()]
    middles = sorted({v[:4, 0].mean().round(3) for v in found})
    sizes = [(middles.index(v[:4, 0].mean().round(3)), np.ptp(v[:, 1])) for v in found]
    return [(*size, to_hex(face)) for size, face in zip(sizes, boxes.get_facecolors(), strict=True)]


@pytest.mark.parametrize("replicas", [32, 40, 64])
def test_bars_are_the_loads_of_the_placement_and_replicas_have_one_colour(replicas):
    load, *sizes = arguments(f"placement: {replicas}")
    left, right = picture(f"placement: {replicas}").axes
    places, _, counts = (part[0] for part in rebalance_experts(load[None], *sizes))
    relative = (load * 8 / load.sum()).numpy()
    colors = {}
    for (gpu, size, color), expert, i in zip(bars(right), places.tolist(), range(replicas), strict=True):
        assert (gpu, size) == (i * 8 // replicas, pytest.approx(relative[expert] / counts[expert].item()))
        assert colors.setdefault(expert, color) == color
    for expert, (gpu, size, color) in enumerate(bars(left)):
        assert (gpu, size, color) == (expert // 4, pytest.approx(relative[expert]), colors[expert])
    busiest = [max(sum(size for g, size, _ in bars(ax) if g == gpu) for gpu in range(8)) for ax in (left, right)]
    assert f"{busiest[0]:.2f} in order, {busiest[1]:.2f} with {replicas} replicas" in title(
        picture(f"placement: {replicas}")
    )


def test_axes_and_colours_stay_when_replicas_are_added():
    drawn = [picture(f"placement: {replicas}") for replicas in (32, 40, 64)]
    assert len({(*ax.get_ylim(), *ax.get_xlim()) for fig in drawn for ax in fig.axes}) == 1
    first, second = ([color for *_, color in bars(fig.axes[0])] for fig in drawn[1:])
    pale = {color for *_, color in bars(drawn[0].axes[0])}
    assert len(pale) == 1
    assert all(one == two for one, two in zip(first, second, strict=True) if one not in pale)
    assert first != second


def test_experts_that_cannot_be_divided_are_not_drawn_in_order():
    left = picture("placement: published").axes[0]
    assert not left.collections
    assert "12 experts cannot be\ndivided evenly over 8 GPUs" in [text.get_text() for text in left.texts]
    assert title(picture("placement: published")).startswith("With 16 replicas, the busiest of 8 GPUs has 1.21 times")
    assert in_order([1, 2, 3], 2) is None
    assert over_mean(in_order([5, 3, 2, 2], 2), 2) == pytest.approx(8 / 6)


def test_the_small_example_is_packed_as_published_and_its_second_replica_changes_no_load():
    hand = Hand.of((5, 3, 2), 4, 2)
    assert [(piece.expert, piece.gpu) for piece in hand.packed] == [(1, 0), (0, 1), (0, 1), (2, 0)]
    assert hand.twice == [(1, 0)]
    assert loads_of(hand.packed, 2) == [5, 5]
    fig = picture("packing_by_hand: useless")
    assert title(fig) == "Both replicas of expert 0 are on GPU 1, where the second one is useless"
    assert "Experts on each GPU: 0: 1, 2; 1: 0, 0." in fig.alt
    assert "Loads of the GPUs: 5 and 5." in fig.alt
    assert "Apart: 5.5 and 4.5. If the load of expert 0 doubles: 8 instead of 10." in fig.alt


@examples(25)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(1, 3), st.integers(0, 3))
def test_by_hand_is_what_eplb_places_and_apart_is_the_best_of_all(load, gpus, more):
    replicas = min((-(-len(load) // gpus) + more) * gpus, 8 // gpus * gpus)
    hand, placed = Hand.of(load, replicas, gpus), by_eplb(load, replicas, 1, 1, gpus)
    assert Counter((p.gpu, p.expert) for p in hand.packed) == Counter((p.gpu, p.expert) for p in placed)
    assert_legible(draw_packing_by_hand(load, replicas, gpus))
    copies = [expert for expert, count in enumerate(hand.counts) for _ in range(count)]
    room, least = replicas // gpus, None
    for order in set(itertools.permutations(copies)) if replicas <= 6 else ():
        of_gpu = [order[i : i + room] for i in range(0, replicas, room)]
        if all(len(set(gpu)) == room for gpu in of_gpu):
            most = max(sum(load[e] / hand.counts[e] for e in gpu) for gpu in of_gpu)
            least = most if least is None else min(least, most)
    found = apart(hand.counts, load, gpus)
    if replicas <= 6:
        assert (found and max(loads_of(found, gpus))) == (least and pytest.approx(least))


@pytest.mark.parametrize(
    ("draw", "data", "why"),
    [
        (draw_journey, ([[[0, 1]]] * 4, 3), "hops=3 is not possible: it must be 1 or 2"),
        (draw_journey, ([[[0, 1]]] * 3,), "experts_NK_by_rank=3 is not possible: it must be of 4 ranks"),
        (draw_journey, ([[[0, 1]] * 3] * 4,), "at most 2 tokens of each rank, with at most 4 choices each"),
        (draw_journey, ([[[0, 1]]] * 4, 1, 4), "token=4 is not possible: it must be a whole number of at least 0"),
        (draw_traffic, ({}, 1), "matrices=0 is not possible: it must be 1 to 4 of them"),
        (draw_traffic, ({"a": np.ones((2, 2)), "b": np.ones((4, 4))}, 2), "square, of two ranks or more, and all of"),
        (draw_traffic, ({"a": np.ones((4, 4))}, 3), "ranks_per_node=3 is not possible: it must be a divisor of"),
        (draw_grid, (Layout(9, pp=9),), "pp=9 is not possible: it must be at most 8"),
        (draw_grid, (Layout(9),), "dp=9 is not possible: it must be at most 8"),
        (draw_grid, (Layout(2, pp=2, schedule="ZBV"),), "it must be one with a single stage on each rank"),
        (draw_kept, ({}, 1), "layouts=0 is not possible: it must be 1 to 5 of them"),
        (draw_kept, ({"a": ([1], [2, 2])}, 1), "it must be one number, in all layouts"),
        (draw_kept, ({"a": ([1] * 25, [2] * 25)}, 1), "ranks=25 is not possible: it must be at most 24 for 1 layouts"),
        (draw_placement, ([0, 0], 2, 1, 1, 2), "it must be above 0 for one expert"),
        (draw_placement, ([1, 2], 3, 1, 1, 2), "num_replicas=3 is not possible: it must be a multiple of num_gpus=2"),
        (draw_packing_by_hand, ((5, 30),), "it must be numbers from 1 to 20"),
        (draw_packing_by_hand, ((5, 3), 10, 2), "replicas=10 is not possible"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, data, why):
    with pytest.raises(ValueError, match=why):
        draw(*data)
