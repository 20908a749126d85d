"""Placements of experts: published examples, the policy in plain loops, and what every placement must have."""

import math

import numpy as np
import pytest
import torch
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st

from minids.parallel.eplb import rebalance_experts

LOADS = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]  # fmt: skip
PUBLISHED = [[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1], [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]]


def packed(weights: list, packs: int) -> list[list[int]]:
    """The items of each pack: from the heaviest, each into the lightest pack that has room."""
    room = len(weights) // packs
    if room == 1:
        return [[item] for item in range(packs)]
    found, sums = [[] for _ in range(packs)], [np.float32(0)] * packs
    for item in torch.tensor(weights).sort(descending=True).indices.tolist():  # not stable: it decides ties
        pack = min((p for p in range(packs) if len(found[p]) < room), key=lambda p: sums[p])
        found[pack].append(item)
        sums[pack] += weights[item]
    return found


def placed(loads: list[int], replicas: int, groups: int, nodes: int, gpus: int) -> list[list[int]]:
    """The experts on each GPU, by the published steps, in float32."""
    if groups % nodes:
        groups = nodes = 1
    size, result = len(loads) // groups, []
    of_group = [np.float32(sum(loads[g * size : (g + 1) * size])) for g in range(groups)]
    for node in packed(of_group, nodes):
        experts = [group * size + i for group in node for i in range(size)]
        copies = list(experts)
        while len(copies) < replicas // nodes:
            copies.append(max(experts, key=lambda e: np.float32(loads[e]) / np.float32(copies.count(e))))
        share = [np.float32(loads[e]) / np.float32(copies.count(e)) for e in copies]
        result += [[copies[i] for i in gpu] for gpu in packed(share, gpus // nodes)]
    return result


def test_the_published_example_gives_the_published_placement():
    phy2log, log2phy, logcnt = rebalance_experts(torch.tensor(LOADS), 16, 4, 2, 8)
    assert phy2log.tolist() == PUBLISHED
    assert logcnt[0].tolist() == [PUBLISHED[0].count(expert) for expert in range(12)]
    assert log2phy[0, 5].tolist() == [0, 2]
    assert log2phy[0, 6].tolist() == [1, -1]


SIZES = st.tuples(*(st.integers(1, 4) for _ in range(6)))


@examples(300)
@given(SIZES, st.data())
def test_any_sizes_are_placed_by_the_published_steps_and_nothing_is_lost(sizes, data):
    """Groups, their sizes, nodes, GPUs of a node, replicas of a GPU and layers; loads are small, so that ties occur."""
    groups, size, nodes, gpus_of_node, extra, layers = sizes
    experts, gpus = groups * size, nodes * gpus_of_node
    replicas = gpus * (math.ceil(experts / gpus) + extra - 1)
    loads = data.draw(
        st.lists(st.lists(st.integers(0, 20), min_size=experts, max_size=experts), min_size=layers, max_size=layers)
    )
    phy2log, log2phy, logcnt = rebalance_experts(torch.tensor(loads), replicas, groups, nodes, gpus)
    assert phy2log.view(layers, gpus, -1).tolist() == [placed(row, replicas, groups, nodes, gpus) for row in loads]
    for layer in range(layers):
        assert logcnt[layer].tolist() == phy2log[layer].bincount(minlength=experts).tolist()
        assert logcnt[layer].min() >= 1  # every expert is somewhere
        for expert in range(experts):
            places = [place for place in log2phy[layer, expert].tolist() if place >= 0]
            assert sorted(places) == (phy2log[layer] == expert).nonzero().flatten().tolist()


def test_two_replicas_of_an_expert_can_lie_on_one_gpu_as_in_the_original():
    assert rebalance_experts(torch.tensor([[5, 3, 2]]), 4, 1, 1, 2)[0].tolist() == [[1, 2, 0, 0]]
    assert rebalance_experts(torch.tensor([[8, 8]]), 4, 1, 1, 2)[0].tolist() == [[0, 0, 1, 1]]


def test_groups_are_ignored_where_the_nodes_do_not_divide_them():
    loads = [[9, 1, 4, 4, 2, 7, 3]]
    phy2log = rebalance_experts(torch.tensor(loads), 8, 3, 2, 4)[0]
    assert phy2log.view(4, 2).tolist() == placed(loads[0], 8, 1, 1, 4)


REFUSED = [
    (dict(weight=torch.ones(6)), r"weight=\(6,\) .* of shape \(layers, experts\)"),
    (dict(weight=torch.tensor([[1.0] * 6, [1.0, 2.0, -3.0, 1.0, 1.0, 1.0]])), r"weight\[1, 2\]=-3.0 .* at least 0"),
    (dict(weight=torch.tensor([[float("nan")] * 6])), r"weight\[0, 0\]=nan .* finite"),
    (dict(num_replicas=5), "num_replicas=5 .* at least 6"),
    (dict(num_replicas=9), "num_replicas=9 .* a multiple of num_gpus=4"),
    (dict(num_groups=4), "num_groups=4 .* a divisor of the number of experts, 6"),
    (dict(num_gpus=5), "num_gpus=5 .* a multiple of num_nodes=2"),
    (dict(num_nodes=0), "num_nodes=0 .* at least 1"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_placed_is_refused(changes, message):
    possible = dict(weight=torch.ones(1, 6), num_replicas=8, num_groups=2, num_nodes=2, num_gpus=4)
    with pytest.raises(ValueError, match=message):
        rebalance_experts(**possible | changes)
