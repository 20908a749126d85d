"""Layouts of ranks: what fits together, and who holds what."""

from dataclasses import replace

import pytest
from configurations import examples
from helpers_distributed import group_sizes
from hypothesis import given
from hypothesis import strategies as st

from minids.model.config import ModelConfig
from minids.parallel.launch import RankFailed, launch
from minids.parallel.layout import Layout, from_torchrun

TINY = ModelConfig.preset("tiny")  # 8 layers, 8 experts
DENSE = replace(TINY, n_routed_experts=None, n_shared_experts=None)


def test_v3_has_every_expert_twice_on_each_rank_of_its_pipeline():
    v3 = Layout(2048, pp=16, ep=64)
    assert (v3.dp, v3.copies) == (128, 2)
    assert v3.holders((3,), 3 * 128 + 70, is_expert=True) == (3 * 128 + 6, 3 * 128 + 70)


@examples(100)
@given(st.tuples(*(st.integers(1, 4) for _ in range(3))), st.booleans(), st.data())
def test_holders_of_a_parameter_agree_and_all_have_it_or_all_its_parts(sizes, is_expert, data):
    pp, copies, ep = sizes
    layout = Layout(pp * copies * ep, pp=pp, ep=ep)
    stages = tuple(sorted(data.draw(st.sets(st.integers(0, pp - 1), min_size=1))))
    ranks = [rank for rank in range(layout.ranks) if layout.coordinates(rank)[0] in stages]
    found = {layout.holders(stages, rank, is_expert) for rank in ranks}
    assert sorted(rank for group in found for rank in group) == ranks  # no two groups share a rank
    assert len(found) == (ep if is_expert else 1)
    for group in found:  # copies of a group of experts have the same place in it
        assert len({rank % ep for rank in group}) == (1 if is_expert else min(ep, layout.ranks))


REFUSED = [
    (dict(ranks=4, pp=3), "pp=3 .* a divisor of 4, because there are 4 processes"),
    (dict(ranks=1, pp=2), r"pp=2 .* a divisor of 1, because there is one process \(torchrun starts several\)"),
    (dict(ranks=4, pp=2, dp=4), "dp=4 .* 2 with pp=2, because there are 4 processes"),
    (dict(ranks=1, dp=2), "dp=2 .* 1 with pp=1, because there is one process"),
    (dict(ranks=4, ep=3), "ep=3 .* a divisor of dp=4"),
    (dict(ranks=4, ep=0), "ep=0 .* at least 1"),
    (dict(ranks=4, pp=2, schedule="2F2B"), "schedule='2F2B' .* one of GPipe, 1F1B, "),
    (dict(ranks=4, schedule="1F1B"), "schedule='1F1B' .* left out without a pipeline"),
]


@pytest.mark.parametrize(("numbers", "message"), REFUSED)
def test_numbers_that_do_not_fit_together_are_refused(numbers, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Layout(**numbers)


DOES_NOT_FIT = [
    (DENSE, Layout(2, ep=2), 8, None, "ep=2 .* 1, because the model has no experts"),
    (TINY, Layout(3, ep=3), 9, None, "ep=3 .* a divisor of the model's 8 experts"),
    (TINY, Layout(4), 6, None, "batch_size=6 .* a multiple of dp=4"),
    (TINY, Layout(4, pp=2), 6, 2, "batch_size=6 .* a multiple of dp=2 x micro_batch_size=2"),
    (TINY, Layout(9, pp=9), 9, None, "schedule 1F1B with pp=9: stages=9 .* from 1 to the model's 8 layers"),
    (
        TINY,
        Layout(2, pp=2, schedule="DualPipe"),
        3,
        1,
        r"schedule DualPipe with pp=2: micro_batches=3 .*, 3 / \(1 x 1\) here",
    ),
    (TINY, Layout(3, pp=3, schedule="DualPipe"), 6, 1, "schedule DualPipe with pp=3: ranks=3 .* an even number"),
]


@pytest.mark.parametrize(("model", "layout", "batch", "micro", "message"), DOES_NOT_FIT)
def test_models_and_batches_that_cannot_be_divided_are_refused(model, layout, batch, micro, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        layout.check(model, batch, micro)


def test_torchrun_says_how_many_there_are(monkeypatch):
    for name, value in {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert from_torchrun() == Layout(1, node=1)  # a leftover of something else
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert from_torchrun(ep=8) == Layout(8, ep=8, node=4)


def test_tokens_travel_in_two_hops_where_experts_are_on_several_nodes():
    layouts = [Layout(4, ep=4, node=2), Layout(4, ep=2, node=1), Layout(4, ep=4), Layout(4, ep=2, node=2)]
    sizes = launch(group_sizes, 4, layouts)
    assert set(map(str, sizes)) == {"[[2, 2], [2, 1], [4], [2]]"}
    with pytest.raises(RankFailed, match="ranks=2 is not possible: it must be 4, the number of processes"):
        launch(group_sizes, 4, [Layout(2)])
